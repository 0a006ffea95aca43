//! The demo proper: one client, and the primary's host is killed again and again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use spec::FtMode;
use terminal::error_text::error_text;
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, write_json};

use super::hosts::COUNTER;
use super::report::{Report, Subject};
use super::stage::Stage;
use super::{DemoArguments, Screen, build_image, engine_for, survive_a_kill};

/// How long the last look at the counter may take.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(arguments: &DemoArguments, mode: FtMode) -> Result<ExitCode> {
    check_json(arguments.json.as_deref())?;
    let is_stdout_taken = is_stdout(arguments.json.as_deref());
    let engine = engine_for(mode, arguments.engine)?;
    build_image()?;
    let mut stage = Stage::set(engine, mode, Screen::new(is_stdout_taken), None, None)?;
    stage.screen.event(&format!("turning protection on, mode {mode}"));
    stage.protect()?;
    let client = stage.count(1)?;
    stage.screen.event("one client is connected; it increments a counter, one request at a time");

    let mut failovers = Vec::new();
    let mut problem = None;
    for kill in 1..=arguments.kills {
        match survive_a_kill(&mut stage, &client, &format!("kill {kill} of {}", arguments.kills)) {
            Ok(failover) => {
                let survived = failover.survived;
                failovers.push(failover);
                if !survived {
                    break;
                }
            }
            Err(error) if interrupt::is_requested() => return Err(error),
            // What was seen up to here still counts.
            Err(error) => {
                problem = Some(error_text(&error));
                break;
            }
        }
    }
    let outcome = client.finish_and_audit(stage.hosts.redis(), COUNTER, AUDIT_TIMEOUT);
    if problem.is_none() && failovers.iter().any(|failover| !failover.survived) {
        problem = Some(format!("a kill was not survived{}", stage.hosts.log_tails()));
    }
    stage.screen.finish();
    let report = Report::new(Subject { mode, engine }, arguments.kills, failovers, outcome, problem);
    if !is_stdout_taken {
        report.print()?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
