//! `twinvm disk-job`: what a host's daemon has done with the disks of a VM that is off.

use std::io::stdin;
use std::process::ExitCode;

use anyhow::Result;
use host::replica::process::DiskJob;
use terminal::error_text::error_text;
use terminal::output::say;

pub fn run() -> Result<ExitCode> {
    match DiskJob::read(stdin().lock()).and_then(DiskJob::run) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // The daemon says whose it is.
            say(error_text(&error));
            Ok(ExitCode::FAILURE)
        }
    }
}
