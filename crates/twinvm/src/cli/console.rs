//! The serial console of a VM of the cluster, on the terminal.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::daemon::{DaemonConnection, path_segment};
use host::foreground::raw_terminal::{RawTerminal, feed_console};

/// Pieces of typed input that may wait.
const TYPED_MAX: usize = 64;

/// How long a console must have been silent, after the end of standard input, until this is taken for the end of what was asked there.
const SILENCE: Duration = Duration::from_secs(1);

/// What comes from the user.
enum Typed {
    Bytes(Vec<u8>),
    Leave,
    /// There is no more; what the guest answers is still shown.
    End,
}

/// Connects until the user leaves, standard input ends, or the VM or the connection does.
pub fn connect(daemon: &DaemonConnection, vm: &str) -> Result<()> {
    let vm = path_segment(vm);
    let stream = daemon.wait_for(|client, target| client.console(target, &vm))?;
    let raw = RawTerminal::enter()?;
    if raw.is_some() {
        eprint!("twinvm: connected to the console of VM {vm}; Ctrl-] leaves\r\n");
    }
    let (typed, mut input) = mpsc::channel(TYPED_MAX);
    let (leave, end) = (typed.clone(), typed.clone());
    // All fail only when the connection has ended, and so does this command.
    feed_console(
        move |bytes| {
            let _ = typed.blocking_send(Typed::Bytes(bytes.to_vec()));
            bytes.len()
        },
        move || _ = leave.blocking_send(Typed::Leave),
        move || _ = end.blocking_send(Typed::End),
    );
    let ended = daemon.block_on(async {
        let (mut guest, mut to_guest) = tokio::io::split(TokioIo::new(stream));
        let mut output = [0; 4096];
        let mut input_open = true;
        loop {
            tokio::select! {
                read = guest.read(&mut output) => {
                    let len = read.context("the console's connection broke")?;
                    if len == 0 {
                        return Err(anyhow!("the VM has ended or moved to another host"));
                    }
                    let mut out = std::io::stdout().lock();
                    out.write_all(output.get(..len).unwrap_or_default()).and_then(|()| out.flush())?;
                }
                typed = input.recv(), if input_open => match typed {
                    Some(Typed::Bytes(bytes)) => to_guest.write_all(&bytes).await.context("the console's connection broke")?,
                    Some(Typed::Leave) => return Ok(()),
                    Some(Typed::End) | None => input_open = false,
                },
                () = tokio::time::sleep(SILENCE), if !input_open => return Ok(()),
            }
        }
    });
    drop(raw);
    ended
}
