//! `twinvm backup repo`: the repositories that the host on this machine knows.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use backup::RepositoryKey;
use clap::{Args, Subcommand};
use host::folder::HostFolder;
use host::repositories::Repositories;
use terminal::output::{print_json, print_line, print_table, say, table};

#[derive(Subcommand)]
pub enum RepoCommand {
    /// Make a repository, or open one that is there with its key, for the host on this machine
    Add(AddArguments),
    /// List the repositories that the host knows
    List(FolderArguments),
    /// Forget a repository and its key on this host; what is in it stays
    Rm(RmArguments),
}

/// Which host.
#[derive(Args)]
pub struct FolderArguments {
    /// Folder of the host [default: $TWINVM_HOST_DIR, else `host` in the data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl FolderArguments {
    fn repositories(&self) -> Result<Repositories> {
        Ok(Repositories::of(&HostFolder::find(self.dir.as_deref())?))
    }
}

#[derive(Args)]
pub struct AddArguments {
    /// Its name on this host
    name: String,
    /// Its folder: empty or not there, unless --key is given
    path: PathBuf,
    /// The key of a repository that is there: a file that --escrow has written
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Write the key to this file, which must not be there: whoever has lost it and all hosts has lost the backups
    #[arg(long, value_name = "FILE")]
    escrow: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArguments,
}

#[derive(Args)]
pub struct RmArguments {
    /// Its name on this host
    name: String,
    #[command(flatten)]
    folder: FolderArguments,
}

pub fn run(command: RepoCommand) -> Result<()> {
    match command {
        RepoCommand::Add(arguments) => add(&arguments),
        RepoCommand::List(arguments) => list(&arguments),
        RepoCommand::Rm(arguments) => {
            arguments.folder.repositories()?.remove(&arguments.name)?;
            if arguments.folder.json {
                return print_json(&serde_json::json!({ "removed": arguments.name }));
            }
            print_line(&format!("this host does not know repository {} any more; what is in it stays", arguments.name))
        }
    }
}

/// Reads a key from a file.
pub fn read_key(path: &Path) -> Result<RepositoryKey> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    RepositoryKey::from_text(&text).with_context(|| path.display().to_string())
}

fn add(arguments: &AddArguments) -> Result<()> {
    let AddArguments { name, path, key, escrow, folder } = arguments;
    // Before anything is made: a key that cannot be kept is of no use.
    let mut file = escrow.as_deref().map(new_file).transpose()?;
    let given = key.as_deref().map(read_key).transpose()?;
    let key = match folder.repositories()?.add(name, path, given) {
        Ok(key) => key,
        Err(error) => {
            if let Some(escrow) = escrow {
                // It is empty, and was made just now.
                let _ = fs::remove_file(escrow);
            }
            return Err(error);
        }
    };
    if let (Some(file), Some(escrow)) = (&mut file, escrow) {
        let text = key.escrow_text(&path.display().to_string());
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.with_context(|| format!("cannot write {}", escrow.display()))?;
    }
    if folder.json {
        return print_json(&serde_json::json!({ "name": name, "path": path, "escrow": escrow }));
    }
    print_line(&format!("this host keeps recovery points in repository {name}, {}", path.display()))?;
    match escrow {
        Some(escrow) => {
            print_line(&format!("its key is in {}: keep it apart from hosts and repository", escrow.display()))
        }
        None if arguments.key.is_none() => {
            say(
                "warning: its key is on this host alone, and without it nobody can read the backups: keep a copy of this line elsewhere",
            );
            print_line(&key.to_text())
        }
        None => Ok(()),
    }
}

fn new_file(path: &Path) -> Result<fs::File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

fn list(arguments: &FolderArguments) -> Result<()> {
    let known = arguments.repositories()?.list()?;
    if arguments.json {
        return print_json(&known);
    }
    if known.is_empty() {
        say("this host knows no backup repository; `twinvm backup repo add NAME PATH` adds one");
        return Ok(());
    }
    let mut rows = table(&["NAME", "PATH"]);
    for view in known {
        rows.add_row([view.name, view.path]);
    }
    print_table(&rows)
}
