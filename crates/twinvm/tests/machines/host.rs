//! One of the machines: its disk, its power, its network port, and a root shell in it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use storage::image::Image;
use tempfile::TempDir;

use crate::HUNG;
use crate::network::Network;
use crate::page::HOSTS;
use crate::support::emulated::disk::run;
use crate::support::emulated::{Machine, one_line, qemu};

/// Memory of a machine: a replica of 256 MiB and what it adds, etcd, and Debian.
const MEMORY: &str = "1536";
/// The least processor that a host may have (x86-64-v2), with instructions for AES, as encryption takes most of a machine's time without them, and without hardware
/// virtualization, so that VMs run on the software engine. QEMU 7.2 does not emulate more without faults.
const CPU: &str = "Westmere";

/// The system's own bounds, which are for machines that are not emulated: on devices to appear, services to start, and services that have hung.
const PATIENCE: &str =
    "systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900 systemd.service_watchdogs=0";

/// A machine that is off or on.
pub struct Host {
    pub name: &'static str,
    number: usize,
    system: Image,
    job: PathBuf,
    network: Arc<Network>,
    folder: Arc<TempDir>,
    machine: Option<Machine>,
}

impl Host {
    /// A machine that was never booted. Its disk is a file in `folder`, over that of the system; `job` is what it can read beside.
    pub fn new(number: usize, system: &Image, job: &Path, network: &Arc<Network>, folder: &Path) -> Self {
        let folder = Arc::new(TempDir::new_in(folder).unwrap());
        let base = system.root_disk().unwrap().canonicalize().unwrap();
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(folder.path().join("disk.qcow2"));
        run(&mut create);
        let (system, job, network) = (system.clone(), job.to_owned(), network.clone());
        Self { name: HOSTS[number], number, system, job, network, folder, machine: None }
    }

    /// Its address on the network.
    pub fn address(&self) -> String {
        format!("192.0.2.{}", 11 + self.number)
    }

    /// Gives it power. It has booted when it [takes commands](Self::wait_until_ready).
    pub fn power_on(&mut self) {
        let machine = Machine::start(&self.folder, |folder, control_port| self.emulator(folder, control_port));
        self.machine = Some(machine.unwrap_or_else(|error| panic!("host {}: {error}", self.name)));
    }

    /// Waits until it takes commands.
    pub fn wait_until_ready(&mut self) {
        let ready = self.machine().wait_until_ready(HUNG);
        ready.unwrap_or_else(|error| panic!("host {}: {error}", self.name));
    }

    /// Takes its power away: what its kernel, its devices and everything that runs in it have in their memory is gone.
    pub fn cut_power(&mut self) {
        self.machine = None;
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.machine.is_some()
    }

    /// Opens or closes its port of the network.
    pub fn set_port(&mut self, is_open: bool) {
        self.monitor("set_link", &serde_json::json!({ "name": "port", "up": is_open }));
    }

    /// Stops its processors, or lets them go on, as if nothing had happened.
    pub fn set_running(&mut self, is_running: bool) {
        self.monitor(if is_running { "cont" } else { "stop" }, &serde_json::json!({}));
    }

    /// What a command prints that has to succeed.
    pub fn done(&mut self, command: &str) -> String {
        let (status, output) = self.run(command);
        assert_eq!(status, 0, "host {}: {command}\n{output}", self.name);
        output
    }

    /// What a command of twinvm's prints as JSON; none if it fails, or prints something else.
    pub fn json(&mut self, command: &str) -> Option<Value> {
        let (status, output) = self.run(&format!("{command} --json"));
        if status == 0 { serde_json::from_str(&output).ok() } else { None }
    }

    /// The status that a command ends with, and what it prints.
    pub fn run(&mut self, command: &str) -> (i32, String) {
        let name = self.name;
        let outcome = self.machine().run(&one_line(command), HUNG);
        let outcome = outcome.unwrap_or_else(|error| panic!("host {name}: {command}: {error}"));
        (outcome.status, outcome.output)
    }

    fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().unwrap_or_else(|| panic!("host {} is off", self.name))
    }

    /// Asks QEMU's monitor (QMP) for something that it answers at once.
    fn monitor(&mut self, command: &str, arguments: &Value) {
        let mut socket = UnixStream::connect(self.folder.path().join("monitor")).unwrap();
        socket.set_read_timeout(Some(HUNG)).unwrap();
        let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
        let _greeting = lines.next();
        for request in [
            serde_json::json!({ "execute": "qmp_capabilities" }),
            serde_json::json!({ "execute": command, "arguments": arguments }),
        ] {
            writeln!(socket, "{request}").unwrap();
            // Events come between.
            let answer = lines.by_ref().map(Result::unwrap).find(|line| !line.contains("\"event\"")).unwrap();
            assert!(answer.contains("\"return\""), "{request}: {answer}");
        }
    }

    fn emulator(&self, folder: &Path, control_port: u16) -> Command {
        let command_line = format!(
            "console=ttyS0,115200 root=/dev/vda net.ifnames=0 mitigations=off tsc=reliable panic=-1 quiet twinvm.hostname={} {PATIENCE}",
            self.name
        );
        let mac = format!("52:54:00:c0:02:{:02x}", 11 + self.number);
        let mut command = qemu::machine(&self.system, &command_line, folder, control_port);
        command
            .args(["-cpu", CPU, "-smp", "1", "-m", MEMORY])
            .args(["-drive", &format!("file={},format=qcow2,if=virtio", folder.join("disk.qcow2").display())])
            .args(["-drive", &format!("file={},format=raw,if=virtio,snapshot=on", self.job.display())])
            .args(["-netdev", &self.network.port(self.number, "net")])
            .args(["-device", &format!("virtio-net-pci,id=port,netdev=net,mac={mac}")])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", folder.join("monitor").display())]);
        command
    }
}
