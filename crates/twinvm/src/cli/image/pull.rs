//! `twinvm image pull`: a disk that somebody else has made, from a file or by HTTPS.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use spec::{ByteSize, DiskFormat};
use storage::image::{BootFiles, ImageError, Incoming, PULL_BYTES_MAX_DEFAULT, PullSpec};
use terminal::image_progress::Bar;
use terminal::interrupt;
use terminal::output::{print_json, print_line};
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::{FormatArguments, describe};

/// How long a server may take until it has answered, and how long nothing may come after that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether the user wants to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// What is read at a time, and how much of it may wait to be written.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_WAITING_MAX: usize = 8;

pub const HELP: &str = "\
Examples:
  twinvm image pull jammy https://cloud-images.ubuntu.com/jammy/current/jammy-server-cloudimg-amd64.img --sha256 HEX
  twinvm image pull shop /mnt/shop.qcow2 --sha256 HEX
  twinvm image pull appliance disk.raw --sha256 HEX --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0 root=/dev/vda3'
HEX is what `sha256sum FILE` prints, or what whoever has made the disk says.
The disk is qcow2 or raw, not packed, and shows no other image (backing file).
A guest gets its kernel and initial RAM disk from its host. They are taken from /boot of the disk, the newest ones, if they are on an ext4 file
system; of any other disk, name them with --kernel and --initrd. The guest gets no more from twinvm: its host name, keys and services are its own.";

#[derive(Args)]
pub struct PullArguments {
    /// Name of the image
    name: String,
    /// The disk: a file, or an address that begins with https://
    #[arg(value_name = "FILE|URL")]
    from: String,
    /// SHA-256 digest that it must have
    #[arg(long, value_name = "HEX")]
    sha256: String,
    /// Format of the disk [default: found out]
    #[arg(long, value_name = "qcow2|raw")]
    format: Option<DiskFormat>,
    /// Kernel to boot the guest with, instead of the one on the disk
    #[arg(long, value_name = "FILE", requires = "initrd")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk that belongs to the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0 root=DEVICE, with the root file system that is found]
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Most bytes of the disk, and of what it comes as [default: 64G]
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,
    /// Certificates of the authorities that the server's is checked with, as PEM [default: those of the web]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    output: FormatArguments,
}

pub fn run(arguments: PullArguments) -> Result<ExitCode> {
    let PullArguments { name, from, sha256, format, kernel, initrd, cmdline, max_size, ca, output } = arguments;
    let is_address = from.contains("://");
    if is_address && !from.starts_with("https://") {
        bail!("{from}: only files and addresses that begin with https:// can be pulled");
    }
    let boot = kernel.zip(initrd).map(|(kernel, initrd)| BootFiles { kernel, initrd });
    let bytes_max = max_size.map_or(PULL_BYTES_MAX_DEFAULT, |size| size.bytes());
    let spec = PullSpec { name, from, sha256, format, boot, cmdline, bytes_max };
    let agent = is_address.then(|| agent(ca.as_deref())).transpose()?;
    interrupt::catch(|| {})?;
    let mut bar = Bar::default();
    let open = || match &agent {
        Some(agent) => fetch(agent, &spec.from),
        None => open_file(&spec.from),
    };
    let pulled = output.store()?.pull(&spec, open, &mut bar);
    bar.clear();
    let pulled = pulled.with_context(|| format!("image {} was not pulled", spec.name))?;
    if output.json {
        print_json(&describe(&pulled.image, pulled.cached))?;
    } else {
        let what = if pulled.cached { "is there already" } else { "pulled" };
        print_line(&format!("image {} {what}: {}", spec.name, pulled.image.dir().display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open_file(from: &str) -> Result<Incoming<'static>, ImageError> {
    let at = |source| ImageError::Io { path: from.into(), source };
    let file = File::open(from).map_err(at)?;
    let metadata = file.metadata().map_err(at)?;
    let bytes = metadata.is_file().then_some(metadata.len());
    Ok(Incoming { content: Box::new(file), bytes })
}

/// A client that follows redirections, to HTTPS only.
fn agent(ca: Option<&Path>) -> Result<Agent> {
    let roots = match ca {
        None => RootCerts::WebPki,
        Some(path) => {
            let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let certificates = parse_pem(&text).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            });
            let certificates: Vec<Certificate> =
                certificates.collect::<Result<_, _>>().with_context(|| path.display().to_string())?;
            if certificates.is_empty() {
                bail!("{} holds no certificate", path.display());
            }
            RootCerts::from(certificates)
        }
    };
    let config = Agent::config_builder()
        .https_only(true)
        .timeout_connect(Some(ANSWER_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .tls_config(TlsConfig::builder().root_certs(roots).build());
    Ok(config.build().into())
}

fn fetch(agent: &Agent, address: &str) -> Result<Incoming<'static>, ImageError> {
    let refused = |reason: String| ImageError::NotPulled { from: address.to_owned(), reason };
    let answer = agent.get(address).call().map_err(|error| refused(error.to_string()))?;
    // The body as it is sent: what is packed would have another length, and the digest is of what was published.
    let body = answer.into_body();
    let bytes = body.content_length();
    let piped = Piped::start(body.into_reader()).map_err(|error| refused(error.to_string()))?;
    Ok(Incoming { content: Box::new(piped), bytes })
}

/// A stream that another thread reads, so that whoever waits for it can stop.
struct Piped {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    heard: Instant,
}

impl Piped {
    fn start(mut from: impl Read + Send + 'static) -> io::Result<Self> {
        let (sender, pieces) = sync_channel(PIECES_WAITING_MAX);
        thread::Builder::new().name("fetch".to_owned()).spawn(move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let read = from.read(&mut piece).map(|read| {
                    piece.truncate(read);
                    piece
                });
                let is_last = read.as_ref().map_or(true, Vec::is_empty);
                if sender.send(read).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Self { pieces, piece: Vec::new(), at: 0, heard: Instant::now() })
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece = match self.pieces.recv_timeout(LOOK_INTERVAL) {
                Ok(piece) => piece?,
                Err(RecvTimeoutError::Timeout) if self.heard.elapsed() < SILENCE_MAX => {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let why = format!("nothing has come for {} s", SILENCE_MAX.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                // It has ended, and said so.
                Err(RecvTimeoutError::Disconnected) => Vec::new(),
            };
            (self.at, self.heard) = (0, Instant::now());
        }
        let mut rest = self.piece.get(self.at..).unwrap_or_default();
        let read = rest.read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<io::Result<Vec<u8>>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0)?;
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    fn all(mut piped: Piped) -> io::Result<Vec<u8>> {
        let (mut read, mut buffer) = (Vec::new(), [0; 3]);
        loop {
            match piped.read(&mut buffer) {
                Ok(0) => return Ok(read),
                Ok(count) => read.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn a_stream_comes_through_a_thread_with_its_errors() {
        let pieces = || vec![Ok(b"hello".to_vec()), Ok(b", world".to_vec())];
        assert_eq!(all(Piped::start(Pieces(pieces())).unwrap()).unwrap(), b"hello, world");
        let mut broken = pieces();
        broken.push(Err(io::ErrorKind::ConnectionReset.into()));
        assert_eq!(all(Piped::start(Pieces(broken)).unwrap()).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
