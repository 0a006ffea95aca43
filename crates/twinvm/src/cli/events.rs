//! `twinvm events`: what has happened in the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use api::events::Event;
use api::messages::HostView;
use clap::Args;
use terminal::output::{say, unix_time};

use super::daemon::{DaemonArguments, DaemonConnection, path_segment};
use super::vm::{explain, only_here};

/// How often hosts are asked for what is new.
const INTERVAL: Duration = Duration::from_millis(500);

pub const HELP: &str = "\
Each host keeps what has happened on it in its folder (events.jsonl, about 5,000 events), and is asked for it; events are shown in order of their times, which
are those of the hosts' own clocks. A host that does not answer is named on standard error, and its events are shown when it does.
With --follow it goes on until Ctrl-C, also while daemons are started anew. With --json each event is a line of JSON.

  twinvm events --vm shop --follow";

#[derive(Args)]
pub struct EventsArguments {
    /// Only those about this VM
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    daemon: DaemonArguments,
}

pub fn run(arguments: &EventsArguments) -> Result<()> {
    show(arguments).map_err(|error| match &arguments.vm {
        Some(vm) => explain(error, vm, &arguments.daemon),
        None => error,
    })
}

fn show(arguments: &EventsArguments) -> Result<()> {
    let mut follower = Follower::default();
    let mut daemon = Some(arguments.daemon.daemon()?);
    loop {
        // A daemon that was started anew may answer elsewhere.
        if daemon.is_none() {
            daemon = arguments.daemon.daemon().ok();
        }
        let mut is_none = false;
        let asked = daemon.as_ref().map(|daemon| follower.ask(daemon, arguments.vm.as_deref()));
        match asked {
            Some(Ok(events)) => {
                is_none = events.is_empty();
                match events.iter().try_for_each(|event| print(event, arguments.daemon.json)) {
                    // Nobody reads them any more.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    printed => printed.context("cannot write to standard output")?,
                }
            }
            Some(Err(error)) if !arguments.follow => return Err(error),
            Some(Err(error)) => {
                follower.warn("", &format!("{error}; waiting for it"));
                daemon = None;
            }
            None => {}
        }
        if !arguments.follow {
            // Whoever asks for those of a VM that has no host is told why there are none.
            let is_here = |vm: &String| only_here(vm, &arguments.daemon).is_some();
            return if is_none && arguments.vm.as_ref().is_some_and(is_here) { Err(anyhow!("none")) } else { Ok(()) };
        }
        thread::sleep(INTERVAL);
    }
}

/// Whoever asks hosts for their events again and again.
#[derive(Default)]
struct Follower {
    /// The last event of each host.
    last: BTreeMap<String, u64>,
    /// Hosts that did not answer last time; none by name: the one that the command talks to.
    silent: BTreeSet<String>,
}

impl Follower {
    /// What is new on all hosts.
    fn ask(&mut self, daemon: &DaemonConnection, vm: Option<&str>) -> Result<Vec<Event>> {
        let hosts: Vec<HostView> = daemon.get("/v1/hosts")?;
        self.silent.remove("");
        let mut events = Vec::new();
        for host in hosts {
            let after = self.last.get(&host.name).copied().unwrap_or_default();
            let about = vm.map_or_else(String::new, |vm| format!("&vm={}", path_segment(vm)));
            let path = format!("/v1/hosts/{}/events?after={after}{about}", path_segment(&host.name));
            match daemon.get::<Vec<Event>>(&path) {
                Ok(new) => {
                    self.silent.remove(&host.name);
                    events.extend(new);
                }
                Err(error) => self.warn(&host.name, &error.to_string()),
            }
        }
        Ok(self.in_order(events))
    }

    /// Events in order of their times, and no older ones from now on.
    fn in_order(&mut self, mut events: Vec<Event>) -> Vec<Event> {
        events.sort_by(|a, b| (a.at_unix_ms, &a.host, a.id).cmp(&(b.at_unix_ms, &b.host, b.id)));
        for event in &events {
            let last = self.last.entry(event.host.clone()).or_default();
            *last = event.id.max(*last);
        }
        events
    }

    /// Says once that a host does not answer.
    fn warn(&mut self, host: &str, message: &str) {
        if self.silent.insert(host.to_owned()) {
            say(message);
        }
    }
}

fn print(event: &Event, json: bool) -> io::Result<()> {
    if json {
        return writeln!(io::stdout(), "{}", serde_json::to_string(event)?);
    }
    let about = event.vm.as_ref().map_or_else(String::new, |vm| format!("VM {vm}: "));
    writeln!(io::stdout(), "{}  {}  {about}{}", unix_time(event.at_unix_ms), event.host, event.text)
}

#[cfg(test)]
mod tests {
    use api::events::EventKind;

    use super::*;

    #[test]
    fn events_of_several_hosts_come_in_order_of_their_times() {
        let event = |host: &str, id, at_unix_ms| Event {
            id,
            at_unix_ms,
            host: host.to_owned(),
            vm: None,
            kind: EventKind::Started,
            text: String::new(),
        };
        let mut follower = Follower::default();
        let events =
            follower.in_order(vec![event("a", 1, 10), event("a", 2, 30), event("b", 7, 20), event("b", 8, 20)]);
        let order: Vec<(&str, u64)> = events.iter().map(|event| (event.host.as_str(), event.id)).collect();
        assert_eq!(order, [("a", 1), ("b", 7), ("b", 8), ("a", 2)]);
        assert_eq!(follower.last, BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 8)]));
    }
}
