//! Jobs on the disks of VMs that are off, each in a process of its own ([`DiskJob`]).

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow};
use backup::BackupError;

use crate::replica::process::DiskJob;

/// Has a job done, and waits until it is. One whose daemon is killed meanwhile is done all the same, or not at all.
pub fn run(exe: &Path, job: &DiskJob) -> Result<()> {
    ended(spawn(exe, job, Stdio::null())?)
}

/// Has a job done that tells something, which `listen` takes.
pub fn run_with<T>(exe: &Path, job: &DiskJob, listen: impl FnOnce(ChildStdout) -> Result<T, BackupError>) -> Result<T> {
    let mut child = spawn(exe, job, Stdio::piped())?;
    let told = child.stdout.take().context("the process has no output")?;
    // Whoever stops listening ends the process: it cannot say any more.
    let heard = listen(told);
    match (ended(child), heard) {
        // Of two the first is the cause: a process that fails is heard no further, and one that nobody listens to fails.
        (Err(why), Ok(_) | Err(BackupError::Source(_))) => Err(why),
        (_, heard) => Ok(heard?),
    }
}

fn spawn(exe: &Path, job: &DiskJob, stdout: Stdio) -> Result<Child> {
    let text = serde_json::to_vec(job).context("cannot write JSON")?;
    let mut child = Command::new(exe)
        .arg("disk-job")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", exe.display()))?;
    // One that does not read it ends, and says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&text));
    Ok(child)
}

fn ended(child: Child) -> Result<()> {
    let output = child.wait_with_output().context("the process cannot be waited for")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    Err(anyhow!("{}", why.map_or_else(|| format!("its process ended ({})", output.status), str::to_owned)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use api::status::Role;
    use spec::{EngineKind, FtMode};

    use super::*;
    use crate::replica::config::ReplicaConfig;
    use crate::replica::process::DiskWork;

    #[test]
    fn a_job_says_why_it_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let job = DiskJob {
            work: DiskWork::Save("first".parse().unwrap()),
            replica: ReplicaConfig {
                run_lease: None,
                vm: "shop".to_owned(),
                host: "a".to_owned(),
                spec: String::new(),
                role: Role::Primary,
                engine: EngineKind::Soft,
                store: folder.path().join("store").to_str().unwrap().parse().unwrap(),
                store_keys: None,
                identity: None,
                folder: folder.path().to_owned(),
                user: None,
                snapshot: None,
                network_ends: Vec::new(),
                listen: None,
                suspicion_ms: 100,
                suspicion_ms_min: None,
                epoch_ms_max: 100,
                mode: FtMode::Mirror,
                lag_ms_max: 100,
            },
        };
        let program = folder.path().join("program");
        for (script, expected) in [
            ("cat > job; exit 0", None),
            ("echo one >&2; echo two >&2; exit 1", Some("two")),
            ("kill -9 $$", Some("its process ended (signal: 9 (SIGKILL))")),
        ] {
            fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", folder.path().display())).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            let why = run(&program, &job).err().map(|error| error.to_string());
            assert_eq!(why.as_deref(), expected, "{script}");
        }
        let told = DiskJob::read(fs::File::open(folder.path().join("job")).unwrap()).unwrap();
        assert_eq!(told.replica, job.replica);
        assert!(DiskJob::read(&b"{}"[..]).is_err());
    }
}
