//! The guest's end of the benchmark: a shell for each connection, which executes what it is sent and answers with what that prints.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The port in the guest.
pub const PORT: u16 = 7000;
/// Where the guest's init finds the script that starts the shells.
pub const SERVICE_PATH: &str = "/etc/twinvm/services.d/90-bench-agent";
/// How long a script may be silent: a bound that only a hung guest meets.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// How long the first shell may take.
const START_MAX: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Bytes sent or taken at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// The script that starts the shells. bash takes a script from a connection byte by byte, so that what follows it is left to its commands.
pub fn service() -> String {
    format!("busybox nc -ll -p {PORT} -e /bin/bash > /dev/null 2>&1 &\n")
}

/// The shells of a guest, as reached from outside.
#[derive(Clone, Copy)]
pub struct Agent(pub SocketAddr);

impl Agent {
    /// Waits until there are shells: the guest starts them last.
    ///
    /// # Errors
    /// There are none within a minute.
    pub fn wait(self) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            match self.run("echo ready\n") {
                Ok(answer) if answer == "ready\n" => return Ok(()),
                Ok(answer) if Instant::now() > deadline => bail!("the guest's shell says {answer:?}"),
                Err(error) if Instant::now() > deadline => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Executes a script; returns what it prints.
    pub fn run(self, script: &str) -> Result<String> {
        let mut stream = self.send_script(script)?;
        stream.shutdown(Shutdown::Write)?;
        answer(&mut stream)
    }

    /// Sends bytes into the guest for a while. Returns how many arrived there in a second.
    pub fn send_bytes(self, duration: Duration) -> Result<f64> {
        let mut stream = self.send_script("exec wc -c\n")?;
        let chunk = vec![0; CHUNK_BYTES];
        let start = Instant::now();
        while start.elapsed() < duration {
            stream.write_all(&chunk).context("the guest takes nothing more")?;
        }
        stream.shutdown(Shutdown::Write)?;
        let text = answer(&mut stream)?;
        let count: u64 = text.trim().parse().with_context(|| format!("the guest counted {text:?}"))?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Takes bytes from the guest for a while. Returns how many came in a second.
    pub fn take_bytes(self, duration: Duration) -> Result<f64> {
        let mut stream = self.send_script("exec cat /dev/zero\n")?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed() < duration {
            match stream.read(&mut chunk).context("the guest sends nothing more")? {
                0 => bail!("the guest has closed the connection"),
                len => count += len as u64,
            }
        }
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    fn send_script(self, script: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.0).context("cannot reach the guest")?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        stream.write_all(script.as_bytes())?;
        Ok(stream)
    }
}

fn answer(stream: &mut TcpStream) -> Result<String> {
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).context("the guest does not answer")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::thread;

    use super::*;

    /// What `nc -ll -e /bin/bash` does in the guest, for so many connections.
    fn shells(count: usize) -> Agent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(count) {
                let stream = std::os::fd::OwnedFd::from(stream.unwrap());
                let input = Stdio::from(stream.try_clone().unwrap());
                Command::new("/bin/bash").stdin(input).stdout(Stdio::from(stream)).spawn().unwrap().wait().unwrap();
            }
        });
        Agent(address)
    }

    #[test]
    fn scripts_are_executed_and_bytes_counted_both_ways() {
        let agent = shells(4);
        agent.wait().unwrap();
        assert_eq!(agent.run("i=0\nwhile [ $i -lt 3 ]; do i=$((i+1)); done; echo $i\n").unwrap(), "3\n");
        assert!(agent.send_bytes(Duration::from_millis(50)).unwrap() > 0.0);
        assert!(agent.take_bytes(Duration::from_millis(50)).unwrap() > 0.0);
    }
}
