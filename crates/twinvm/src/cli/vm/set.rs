//! Changing VMs of the cluster.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::messages::{CloneVm, OperationView, RebootVm, RenameVm, SetVm, VmView};
use api::suspicion::SuspicionMs;
use clap::Args;
use indicatif::ProgressBar;
use spec::{ByteSize, DiskFormat, DiskSpec, PortForward, Priority, Protection, VmSpec, to_toml};
use terminal::output::{print_json, print_line};

use super::cluster::{make_absolute, path};
use super::{RebootArguments, VmArguments};
use crate::cli::daemon::DaemonConnection;
use crate::cli::wait::{Look, Patience};

pub const SET_HELP: &str = "\
A VM that is off has the changes at once, one that runs from its next start on: `twinvm vm reboot` shuts it down and starts it again. What its
guest reboots by itself goes on as it is. Ports are forwarded anew at once where the network end may open them, also of a VM that runs. The list of
disks, kernel and initial RAM disk are changed while the VM is off.
Examples:
  twinvm vm set shop --memory 512M --cpus 2
  twinvm vm set shop --forward tcp:127.0.0.1:8080-:80 --forward tcp:127.0.0.1:8443-:443
  twinvm vm set shop --add-disk /var/lib/twinvm/data.qcow2
  twinvm vm set shop --add-disk /srv/tools.img,raw,readonly
  twinvm vm set shop --remove-disk 1         the second, /dev/vdb; its file is kept, and named
  twinvm vm set shop --kernel /boot/vmlinuz --initrd /boot/initrd.img --cmdline 'console=ttyS0 root=/dev/vda'
  twinvm vm set shop --grow-disk 0=20G       the first disk, /dev/vda; grow the file system in the guest afterwards
  twinvm vm set shop --priority high         its first copy comes before those of most others, as after the loss of a host
  twinvm vm set shop --protection ha         restart it on another host when its own is lost; its disks are on a shared datastore
  twinvm vm set shop --suspicion 50-300      on machines that are loaded to the brim now and then
  twinvm vm set shop --autostart on";

#[derive(Args)]
pub struct SetArguments {
    #[command(flatten)]
    pub(super) vm: VmArguments,
    /// Memory
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Number of vCPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<u32>,
    /// A forwarded port of its user-mode network, in place of all that it has; may be repeated
    #[arg(long, value_name = "FORWARD")]
    forward: Vec<PortForward>,
    /// No forwarded ports
    #[arg(long, conflicts_with = "forward")]
    no_forward: bool,
    /// Which of several VMs comes first where not all can at once: highest, high, medium, low or lowest. At once
    #[arg(long)]
    priority: Option<Priority>,
    /// What becomes of it when its host is lost: none, or ha, which restarts it on another host. At once, but for what needs a start under a lease
    #[arg(long)]
    protection: Option<Protection>,
    /// Start it when its host's machine has booted: on or off
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    autostart: Option<bool>,
    /// Silence after which one replica takes the other for lost, in ms: it follows the link between these two; one number makes it fixed. Replicas have it that
    /// start from now on
    #[arg(long, value_name = "MIN-MAX")]
    suspicion: Option<SuspicionMs>,
    /// Make a disk bigger, by its number, from 0; the VM must be off. May be repeated
    #[arg(long, value_name = "NUMBER=SIZE", value_parser = disk_size)]
    grow_disk: Vec<(usize, ByteSize)>,
    /// A disk that it gets behind those that it has: a copy of this file, or the file itself if it is read-only; the VM must be off. May be repeated
    #[arg(long, value_name = "FILE[,FORMAT][,readonly]", value_parser = added_disk)]
    add_disk: Vec<DiskSpec>,
    /// A disk that it is to have no more, by its number, from 0; the VM must be off. The file is kept. May be repeated
    #[arg(long, value_name = "NUMBER")]
    remove_disk: Vec<usize>,
    /// A kernel that is copied from this file; the VM must be off
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initial RAM disk, likewise
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
}

/// A disk as `FILE[,FORMAT][,readonly]`. A comma in the file's name is one as long as no format follows it.
fn added_disk(text: &str) -> Result<DiskSpec, String> {
    let (mut rest, mut format, mut readonly) = (text, None, false);
    while let Some((before, option)) = rest.rsplit_once(',') {
        match option {
            "raw" => format = Some(DiskFormat::Raw),
            "qcow2" => format = Some(DiskFormat::Qcow2),
            "readonly" => readonly = true,
            _ => break,
        }
        rest = before;
    }
    if rest.is_empty() {
        return Err(
            "must be FILE, FILE,FORMAT or FILE,FORMAT,readonly, as data.qcow2 or tools.img,raw,readonly".to_owned()
        );
    }
    // The host has another current folder.
    let path = std::path::absolute(rest).map_err(|error| error.to_string())?;
    Ok(DiskSpec { path, format, readonly, datastore: None, base_image: None })
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be on or off".to_owned()),
    }
}

fn disk_size(text: &str) -> Result<(usize, ByteSize), String> {
    let (number, size) = text.split_once('=').ok_or("must be NUMBER=SIZE, as 0=20G")?;
    Ok((number.parse().map_err(|_| format!("`{number}` is not the number of a disk; the first is 0"))?, size.parse()?))
}

impl SetArguments {
    fn request(&self) -> Result<SetVm> {
        // The host has another current folder.
        let absolute = |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
        Ok(SetVm {
            spec: None,
            memory: self.memory,
            cpus: self.cpus,
            priority: self.priority,
            protection: self.protection,
            forward: (self.no_forward || !self.forward.is_empty()).then(|| self.forward.clone()),
            autostart: self.autostart,
            suspicion_ms: self.suspicion,
            disk_bytes: self.grow_disk.iter().map(|(number, size)| (*number, size.bytes())).collect::<BTreeMap<_, _>>(),
            remove_disk: self.remove_disk.clone(),
            add_disk: self.add_disk.clone(),
            kernel: absolute(&self.kernel)?,
            initrd: absolute(&self.initrd)?,
            cmdline: self.cmdline.clone(),
        })
    }
}

pub fn set(arguments: &SetArguments) -> Result<()> {
    let request = arguments.request()?;
    if request == SetVm::default() {
        bail!("nothing to change: name what, as in `twinvm vm set {} --memory 512M`; see --help", arguments.vm.name);
    }
    send(&arguments.vm, &request)
}

fn send(vm: &VmArguments, request: &SetVm) -> Result<()> {
    let view: VmView = vm.daemon.daemon()?.post(&format!("{}/set", path(&vm.name)), Some(request))?;
    if vm.daemon.json {
        return print_json(&view);
    }
    let name = &vm.name;
    let when = match view.next_spec {
        Some(_) => format!(", from its next start on: `twinvm vm reboot {name}` restarts it"),
        None => String::new(),
    };
    let note = view.note.map(|note| format!("; {note}")).unwrap_or_default();
    print_line(&format!("VM {name} changed{when}{note}"))
}

#[derive(Args)]
pub struct CloneArguments {
    #[command(flatten)]
    pub(super) vm: VmArguments,
    /// Name of the clone
    clone: String,
    /// A forwarded port of the clone, in place of those of the VM; may be repeated
    #[arg(long, value_name = "FORWARD")]
    forward: Vec<PortForward>,
}

#[derive(Args)]
pub struct RenameArguments {
    #[command(flatten)]
    pub(super) vm: VmArguments,
    /// The new name
    new_name: String,
}

pub fn clone(arguments: &CloneArguments) -> Result<()> {
    let VmArguments { name, daemon } = &arguments.vm;
    let forward = Some(arguments.forward.clone()).filter(|forward| !forward.is_empty());
    let request = CloneVm { name: arguments.clone.clone(), forward };
    let view: VmView = daemon.daemon()?.post(&format!("{}/clone", path(name)), Some(&request))?;
    if daemon.json {
        print_json(&view)
    } else {
        print_line(&format!("VM {} created as a clone of VM {name}", view.name))
    }
}

pub fn rename(arguments: &RenameArguments) -> Result<()> {
    let VmArguments { name, daemon } = &arguments.vm;
    let request = RenameVm { name: arguments.new_name.clone() };
    let view: VmView = daemon.daemon()?.post(&format!("{}/rename", path(name)), Some(&request))?;
    if daemon.json { print_json(&view) } else { print_line(&format!("VM {name} is VM {} now", view.name)) }
}

/// Lets the user's editor change the spec.
pub fn edit(arguments: &VmArguments) -> Result<()> {
    let VmArguments { name, daemon } = arguments;
    let view: VmView = daemon.daemon()?.get(&path(name))?;
    let before = view.next_spec.unwrap_or(view.spec);
    let mut file = tempfile::Builder::new().prefix(&format!("{name}-")).suffix(".toml").tempfile()?;
    file.write_all(before.as_bytes()).context("cannot write the spec to be edited")?;
    let editor =
        ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok().filter(|editor| !editor.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // It may come with arguments, and the path is one of its own.
    let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(file.path()).status();
    let status = status.with_context(|| format!("cannot run the editor {editor}; EDITOR names another one"))?;
    if !status.success() {
        bail!("nothing was changed: the editor {editor} ended with {status}");
    }
    let after = std::fs::read_to_string(file.path()).context("cannot read the edited spec")?;
    if after == before {
        return print_line("nothing was changed");
    }
    let sent = VmSpec::parse(&after).map_err(anyhow::Error::from).and_then(|mut spec| {
        make_absolute(&mut spec)?;
        send(arguments, &SetVm { spec: Some(to_toml(&spec)?), ..SetVm::default() })
    });
    sent.or_else(|error| {
        let (_, kept) = file.keep().context("cannot keep the edited spec")?;
        Err(error.context(format!("nothing was changed; what you wrote is in {}", kept.display())))
    })
}

/// How long a VM may take to be started again once it has shut down.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Shuts a VM down and starts it again, with what was set meanwhile. Its host sees to both, whatever becomes of this command.
pub fn reboot(daemon: &DaemonConnection, arguments: &RebootArguments) -> Result<()> {
    let RebootArguments { vm, force, timeout } = arguments;
    let name = &vm.name;
    let request = RebootVm { force: *force, timeout_s: *timeout };
    let begun: VmView = daemon.post(&format!("{}/reboot", path(name)), Some(&request))?;
    let id = begun.operation.map(|operation| operation.id);
    let patience = Patience {
        timeout: Duration::from_secs(*timeout) + START_TIMEOUT,
        late: &|state| format!("{state}; what has begun goes on, see `twinvm vm show {name}`"),
        interrupted: &|state| format!("not waited for; what has begun goes on: {state}"),
    };
    let view = patience.wait(&ProgressBar::new_spinner(), |_| {
        let view: VmView = daemon.get(&path(name))?;
        match &view.operation {
            Some(operation) if Some(operation.id) != id => {
                bail!("VM {name} was not restarted: something else was asked for meanwhile ({})", operation.what)
            }
            Some(OperationView { is_over: true, failure: Some(why), .. }) => {
                bail!("VM {name} was not restarted: {why}")
            }
            Some(OperationView { is_over: false, .. }) => {
                let doing = if view.running { "is shutting down" } else { "is being started" };
                Ok(Look::Waiting(format!("VM {name} {doing}")))
            }
            _ => Ok(Look::Done(view)),
        }
    })?;
    if vm.daemon.json {
        return print_json(&view);
    }
    print_line(&format!("VM {name} restarted on host {}", view.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_to_add_are_read() {
        let read = |text: &str| added_disk(text).map(|disk| (disk.path, disk.format, disk.readonly));
        assert_eq!(read("/d"), Ok(("/d".into(), None, false)));
        assert_eq!(read("/d,raw,readonly"), Ok(("/d".into(), Some(DiskFormat::Raw), true)));
        assert_eq!(read("/a,b,qcow2"), Ok(("/a,b".into(), Some(DiskFormat::Qcow2), false)));
        assert!(read("d").is_ok_and(|(path, ..)| path.is_absolute()));
        assert!(read(",raw").is_err());
    }

    #[test]
    fn sizes_of_disks_are_read() {
        assert_eq!(disk_size("1=20G").unwrap(), (1, (20 << 30).into()));
        for text in ["20G", "vda=20G", "0=much", "=1G", "-1=1G"] {
            assert!(disk_size(text).is_err(), "{text}");
        }
        assert_eq!((on_or_off("on"), on_or_off("off")), (Ok(true), Ok(false)));
        assert!(on_or_off("yes").is_err());
    }
}
