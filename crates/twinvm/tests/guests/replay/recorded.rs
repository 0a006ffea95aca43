//! A recorded guest, and `twinvm` as it records and replays.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use redis::Commands;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::HUNG;
use crate::support::guest::{free_port, image, images_dir};
use crate::support::images;

/// What was recorded, by the words of `twinvm run`.
pub struct Recorded {
    /// The folder with log and snapshot.
    pub records: PathBuf,
    /// The VM's disk.
    pub disk: PathBuf,
    pub instructions: u64,
    pub digest: String,
    pub console: String,
}

/// `twinvm` with the tests' images, and with all else that it uses in `folder`.
fn twinvm(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
    command.env("TWINVM_HOME", images_dir().parent().unwrap()).env("XDG_RUNTIME_DIR", folder);
    command.env("TMPDIR", folder).current_dir(folder).args(arguments);
    command
}

/// Runs the VM of a folder's `vm.toml`.
pub fn run(folder: &Path) -> Child {
    let mut command = twinvm(folder, &["run", "vm.toml", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Replays a log in a folder, which must succeed; returns what it says as JSON, and all that it prints.
pub fn replay(folder: &Path, arguments: &[&str]) -> (Value, Output) {
    let other = tempfile::tempdir().unwrap();
    let json = other.path().join("outcome.json");
    let log = folder.join(arguments[0]);
    let mut command = twinvm(other.path(), &["replay", log.to_str().unwrap(), "--json", json.to_str().unwrap()]);
    let output = command.args(&arguments[1..]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let outcome = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::remove_file(&json).unwrap();
    let left: Vec<_> = fs::read_dir(other.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    (outcome, output)
}

/// Replays a log in a folder, which must be refused in one line.
pub fn refused(folder: &Path, arguments: &[&str]) -> String {
    let log = folder.join(arguments[0]);
    let other = tempfile::tempdir().unwrap();
    let arguments = [&["replay", "--quiet", log.to_str().unwrap()], &arguments[1..]].concat();
    refusal(other.path(), &arguments)
}

/// Replays in a folder, which must succeed.
pub fn run_replay(folder: &Path, arguments: &[&str]) -> Output {
    let output = twinvm(folder, &[&["replay"], arguments].concat()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs `twinvm`, which must refuse in one line.
pub fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let output = twinvm(folder, arguments).stdin(Stdio::null()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
    message
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < HUNG, "waited {HUNG:?} until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A copy of log and snapshot in a folder of its own.
pub fn copy_of(recorded: &Recorded) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vm-1.log", "vm-1.snapshot"] {
        fs::copy(recorded.records.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// The guest that all tests replay, recorded once.
pub fn recorded() -> &'static Recorded {
    static RECORDED: LazyLock<Recorded> = LazyLock::new(record);
    &RECORDED
}

/// Records a Redis that serves a client and writes to its disk, while somebody types on the console, until the guest powers off.
fn record() -> Recorded {
    image(&images::redis());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replay");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let port = free_port();
    let spec = format!(
        "name = \"vm\"\nmemory = \"256M\"\ncpus = 2\nimage = \"test-redis\"\nrecord = \"records\"\n\
         [[disk]]\npath = \"root.qcow2\"\nformat = \"qcow2\"\nbase_image = \"test-redis\"\n\
         [[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:{port}-:6379\"]\n"
    );
    fs::write(folder.join("vm.toml"), spec).unwrap();
    let mut command = twinvm(&folder, &["run", "vm.toml"]);
    let mut vm = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let console = follow(vm.stdout.take().unwrap());
    let events = follow(vm.stderr.take().unwrap());
    let mut keyboard = vm.stdin.take().unwrap();

    let client = redis::Client::open(("127.0.0.1", port)).unwrap();
    let connect = || client.get_connection_with_timeout(Duration::from_secs(2));
    wait_until("Redis answers", || {
        connect().is_ok_and(|mut connection| redis::cmd("PING").query::<String>(&mut connection).is_ok())
    });
    let mut connection = connect().unwrap();
    for number in 1..=100 {
        let counter: usize = connection.incr("counter", 1).unwrap();
        assert_eq!(counter, number);
    }
    let _: String = redis::cmd("SAVE").query(&mut connection).unwrap();
    keyboard.write_all(b"echo typed $((6 * 7)); head -c 1000000 /dev/urandom > /root/noise; sync\n").unwrap();
    wait_until("the guest's shell has answered", || console.text().contains("typed 42"));
    keyboard.write_all(b"poweroff\n").unwrap();
    wait_until("the guest has powered off", || vm.try_wait().unwrap().is_some());
    assert!(vm.wait().unwrap().success());

    let (console, events) = (console.whole(), events.whole());
    let (_, said) = events.split_once("recorded: ").unwrap_or_else(|| panic!("{events}"));
    let mut words = said.split([',', ' ', '\r']).filter(|word| !word.is_empty()).skip(1);
    let instructions = words.next().unwrap().parse().unwrap();
    let digest = words.nth(2).unwrap().to_owned();
    Recorded { records: folder.join("records"), disk: folder.join("root.qcow2"), instructions, digest, console }
}

/// What a process writes.
struct Text {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

fn follow(mut pipe: impl Read + Send + 'static) -> Text {
    let bytes = Arc::<Mutex<Vec<u8>>>::default();
    let seen = bytes.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = pipe.read(&mut buffer) {
            seen.lock().unwrap().extend_from_slice(&buffer[..len]);
        }
    });
    Text { bytes, reader }
}

impl Text {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Everything, once the process has ended.
    fn whole(self) -> String {
        self.reader.join().unwrap();
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}
