//! `twinvm`: keeps a virtual machine running when the machine under it dies.

mod cli;
mod foreground;
mod host;
mod interrupt;
mod load;
mod paths;
mod replica;
mod sandbox;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("twinvm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
