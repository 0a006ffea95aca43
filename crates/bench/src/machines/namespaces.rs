//! Machines as network namespaces of this one: each has its processes, and a link to a switch, which is a namespace as well. The client is there.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The bridge of each machine, and that of the switch.
pub const BRIDGE: &str = "br0";

/// The switch and its machines; all of them and whatever runs in them are gone when this is dropped.
pub struct Namespaces {
    /// Begins the names of all of them.
    prefix: String,
    count: usize,
}

impl Namespaces {
    /// Makes the switch, at `address` with the length of its prefix, and a machine at each of `machines`. The calling thread moves to the switch, and with it
    /// the threads that it starts from now on.
    pub fn enter(address: &str, machines: &[String]) -> Result<Self> {
        let made = Self { prefix: format!("twm{}", std::process::id()), count: machines.len() };
        ip(&["netns", "add", &made.switch()]).context("network namespaces need root")?;
        let namespace = Path::new("/run/netns").join(made.switch());
        let namespace = File::open(&namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot move to another network namespace")?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["addr", "add", address, "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        ip(&["link", "set", "lo", "up"])?;
        for (number, address) in machines.iter().enumerate() {
            made.connect(number, address)?;
        }
        Ok(made)
    }

    fn switch(&self) -> String {
        format!("{}s", self.prefix)
    }

    /// The name of a machine's namespace.
    pub fn machine(&self, number: usize) -> String {
        format!("{}m{number}", self.prefix)
    }

    fn connect(&self, number: usize, address: &str) -> Result<()> {
        let (machine, port) = (self.machine(number), port(number));
        ip(&["netns", "add", &machine])?;
        ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &machine])?;
        ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
        let inside = |words: &[&str]| ip(&[&["-n", &machine], words].concat());
        inside(&["link", "add", BRIDGE, "type", "bridge"])?;
        inside(&["link", "set", "eth0", "master", BRIDGE, "up"])?;
        inside(&["addr", "add", address, "dev", BRIDGE])?;
        inside(&["link", "set", BRIDGE, "up"])?;
        inside(&["link", "set", "lo", "up"])
    }

    /// What runs `program` on a machine.
    pub fn command(&self, number: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.machine(number)]).arg(program);
        command
    }

    /// Ends a machine at once: its link first, so that nobody hears of the end of its processes.
    pub fn lose(&self, number: usize) -> Result<()> {
        ip(&["link", "set", &port(number), "down"])?;
        self.kill_all(&self.machine(number))
    }

    /// Connects a machine again.
    pub fn reconnect(&self, number: usize) -> Result<()> {
        ip(&["link", "set", &port(number), "up"])
    }

    /// Kills everything that runs in a namespace, until there is nothing left.
    fn kill_all(&self, namespace: &str) -> Result<()> {
        loop {
            let output = Command::new("ip").args(["netns", "pids", namespace]).output().context("cannot start ip")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let pids: Vec<Pid> = text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for machine in (0..self.count).map(|number| self.machine(number)) {
            let _ = self.kill_all(&machine);
            let _ = ip(&["netns", "del", &machine]);
        }
        let _ = ip(&["netns", "del", &self.switch()]);
    }
}

/// The switch's side of a machine's link.
fn port(number: usize) -> String {
    format!("port{number}")
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("cannot start ip (Debian's package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
