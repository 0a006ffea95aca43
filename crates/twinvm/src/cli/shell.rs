//! What a system has beside the program: completions for shells, and manual pages, both made of the commands' own definitions.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::Arguments;

/// Examples of [`CompletionsArguments`].
pub const COMPLETIONS_HELP: &str = "\
Examples:
  source <(twinvm completions bash)                                       In this shell, until it ends
  twinvm completions bash > ~/.local/share/bash-completion/completions/twinvm
  twinvm completions zsh > \"${fpath[1]}/_twinvm\"                          Then start a new shell
  twinvm completions fish > ~/.config/fish/completions/twinvm.fish

The Debian package has them already.";

/// Arguments of `twinvm completions`.
#[derive(Args)]
pub struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Arguments of `twinvm man`.
#[derive(Args)]
pub struct ManArguments {
    /// The folder for the pages, a file for each command
    folder: PathBuf,
}

/// Prints a shell's completions.
pub fn completions(arguments: &CompletionsArguments) -> Result<ExitCode> {
    io::stdout().write_all(&script(arguments.shell)).context("cannot write the completions")?;
    Ok(ExitCode::SUCCESS)
}

/// A shell's completions of the commands that users are shown: those that twinvm calls itself are left out, which the generator does not do.
fn script(shell: Shell) -> Vec<u8> {
    let all = Arguments::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut shown = Command::new("twinvm").version(env!("CARGO_PKG_VERSION")).subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown, "twinvm", &mut script);
    script
}

/// Writes the manual pages of section 1.
pub fn man(arguments: &ManArguments) -> Result<ExitCode> {
    let folder = &arguments.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    clap_mangen::generate_to(Arguments::command().name("twinvm"), folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        man(&ManArguments { folder: folder.path().to_owned() }).unwrap();
        let page = |name: &str| fs::read_to_string(folder.path().join(name));
        assert!(page("twinvm.1").unwrap().contains("twinvm\\-ft(1)"));
        assert!(page("twinvm-vm-create.1").unwrap().contains(".SH SYNOPSIS"));
        assert!(page("twinvm-replica.1").is_err() && page("twinvm-net-end.1").is_err());
    }

    #[test]
    fn shells_complete_commands_and_not_those_that_twinvm_calls_itself() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            assert!(script.contains("restart-secondary"), "{shell}");
            assert!(!script.contains("run-broker"), "{shell}");
        }
    }
}
