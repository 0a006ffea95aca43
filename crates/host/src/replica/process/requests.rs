//! What is asked of the replica at its control socket.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use terminal::error_text::error_text;

use super::super::control::{Answer, ConsoleVisit, Handler, Request, Statement};
use super::{Acting, Process};

/// Answers it.
pub(super) struct Control(pub(super) Arc<Process>);

impl Control {
    fn statement(&self, pause: Option<Duration>) -> Statement {
        let processor = match &self.0.shared().acting {
            Acting::Primary(primary, _) => Some(primary.profile().clone()),
            Acting::Starting | Acting::Restarting | Acting::Secondary(_) => None,
        };
        let pause_us = pause.map(|pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX));
        Statement { status: self.0.status(), processor, pause_us }
    }
}

impl Handler for Control {
    fn handle(&self, request: Request) -> Answer {
        match self.0.carry_out(&request) {
            Ok(pause) => Answer::Done(Box::new(self.statement(pause))),
            Err(error) => Answer::Failed { message: error_text(&error) },
        }
    }

    fn console(&self, client: UnixStream, visit: ConsoleVisit) {
        // A client that is gone is no news.
        let _ = self.0.console.serve(client, visit);
    }
}
