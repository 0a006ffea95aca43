//! `twinvm top`: live figures of replication.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use api::figures::Figures;
use api::messages::VmView;
use api::status::{ProtectionState, ReplicaStatus};
use clap::Args;
use spec::FtMode;

use super::daemon::{DaemonArguments, DaemonConnection, path_segment};
use super::output::{human_bits_per_s, human_bytes, print_json, print_line, table};
use crate::interrupt;

/// Time from one table to the next.
const REFRESH: Duration = Duration::from_secs(1);
/// How soon Ctrl-C is heeded in between.
const HEED: Duration = Duration::from_millis(50);

#[derive(Args)]
#[command(after_help = "\
MODE      how the secondary follows: mirror or lockstep; with an arrow, what it is changing to
EPOCH     length of an epoch, and epochs per second; EPOCH, DIRTY and PAUSE are of mirror
DIRTY     pages changed in an epoch
PAUSE     how long a checkpoint pauses the guest: half of them less, 99 of 100 less
SENT/s    mirror: bytes sent to the secondary, and their share of the bytes of changed pages; lockstep: bandwidth of the log
ADDED     how long output waits for its commit: half of it less, 99 of 100 frames less
LAG       mirror: epochs that the secondary has not yet acknowledged; lockstep: how far its execution is behind
DIGESTS   lockstep: digests of both replicas' states that were compared, and how many of them differed
WAITING   frames of output that wait now, and their bytes
MEMORY    resident memory of the primary's process, the guest's included
STATE     protection: why not, and since when
Ctrl-C leaves.")]
pub struct TopArguments {
    /// Only this VM
    vm: Option<String>,
    /// Show it once
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    daemon: DaemonArguments,
}

pub fn run(arguments: &TopArguments) -> Result<ExitCode> {
    let daemon = arguments.daemon.daemon()?;
    interrupt::catch(|| {})?;
    let mut rates = Rates::default();
    let screen = Screen::new(!arguments.once && !arguments.daemon.json);
    loop {
        let vms = views(&daemon, arguments.vm.as_deref())?;
        if arguments.daemon.json {
            print_json(&vms)?;
        } else {
            screen.show(&rows(&vms, &mut rates))?;
        }
        if arguments.once {
            return Ok(ExitCode::SUCCESS);
        }
        let next = Instant::now() + REFRESH;
        while Instant::now() < next {
            if interrupt::is_requested() {
                return Ok(ExitCode::SUCCESS);
            }
            thread::sleep(HEED);
        }
    }
}

fn views(daemon: &DaemonConnection, vm: Option<&str>) -> Result<Vec<VmView>> {
    match vm {
        Some(vm) => Ok(vec![daemon.get(&format!("/v1/vms/{}", path_segment(vm)))?]),
        None => daemon.get("/v1/vms"),
    }
}

/// The terminal, cleared before each table, with its cursor hidden until this is dropped.
struct Screen {
    is_cleared: bool,
}

impl Screen {
    fn new(is_live: bool) -> Self {
        let is_cleared = is_live && io::stdout().is_terminal();
        if is_cleared {
            let _ = write!(io::stdout(), "\x1b[?25l");
        }
        Self { is_cleared }
    }

    fn show(&self, text: &str) -> Result<()> {
        if self.is_cleared {
            let _ = write!(io::stdout(), "\x1b[H\x1b[J");
        }
        print_line(text)?;
        Ok(io::stdout().flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_cleared {
            let _ = write!(io::stdout(), "\x1b[?25h");
            let _ = io::stdout().flush();
        }
    }
}

/// Bytes per second, from one look to the next.
#[derive(Default)]
struct Rates {
    /// By VM: the primary's process, the bytes it had sent, and when.
    before: BTreeMap<String, (u32, u64, Instant)>,
}

impl Rates {
    fn sent_per_s(&mut self, status: &ReplicaStatus) -> Option<u64> {
        let now = (status.pid, status.figures.sent_bytes, Instant::now());
        let (pid, sent_bytes, at) = self.before.insert(status.vm.clone(), now)?;
        let elapsed_s = at.elapsed().as_secs_f64();
        let sent = status.figures.sent_bytes.checked_sub(sent_bytes)?;
        (pid == status.pid && elapsed_s > 0.0).then(|| (sent as f64 / elapsed_s) as u64)
    }
}

fn rows(vms: &[VmView], rates: &mut Rates) -> String {
    let mut rows = table(&[
        "VM",
        "PRIMARY",
        "SECONDARY",
        "MODE",
        "EPOCH",
        "DIRTY",
        "PAUSE",
        "SENT/s",
        "ADDED",
        "LAG",
        "DIGESTS",
        "WAITING",
        "MEMORY",
        "STATE",
    ]);
    for vm in vms {
        let none = || "-".to_owned();
        let mut row = vec![vm.name.clone(), vm.host.clone(), vm.secondary.clone().unwrap_or_else(none)];
        match vm.replicas.first().filter(|_| vm.running) {
            Some(primary) => {
                let f = &primary.figures;
                let sent = rates.sent_per_s(primary).map_or_else(none, human_bytes);
                row.push(mode(vm, primary));
                row.extend(match &f.lockstep {
                    Some(log) => [
                        none(),
                        none(),
                        none(),
                        human_bits_per_s(log.log_bits_per_s),
                        added(f),
                        format!("{:.1} ms, {}", log.lag_ms, millions(log.lag_instructions)),
                        format!("{}, {} differ", log.digests, log.divergences),
                    ],
                    None => [
                        format!("{:.1} ms, {:.0}/s", f.epoch_ms, f.epochs_per_s),
                        f.dirty_pages.to_string(),
                        format!("{:.2}/{:.2} ms", f.pause_us.p50 / 1e3, f.pause_us.p99 / 1e3),
                        format!("{sent} ({:.0}%)", share_percent(f)),
                        added(f),
                        f.lag_epochs.to_string(),
                        none(),
                    ],
                });
                row.extend([
                    format!("{} ({})", f.waiting_frames, human_bytes(f.waiting_bytes)),
                    human_bytes(f.memory_bytes),
                ]);
            }
            None => row.extend((0..10).map(|_| none())),
        }
        row.push(state(vm));
        rows.add_row(row);
    }
    rows.trim_fmt()
}

fn mode(vm: &VmView, primary: &ReplicaStatus) -> String {
    let wanted = vm.ft.mode;
    let followed = if primary.figures.lockstep.is_some() { FtMode::Lockstep } else { FtMode::Mirror };
    if vm.protection.state != ProtectionState::Protected || followed == wanted {
        wanted.to_string()
    } else {
        format!("{followed} -> {wanted}")
    }
}

fn added(figures: &Figures) -> String {
    format!("{:.2}/{:.2} ms", figures.latency_added_ms.p50, figures.latency_added_ms.p99)
}

/// Bytes sent for each byte of changed pages, in percent.
fn share_percent(figures: &Figures) -> f64 {
    if figures.dirty_bytes == 0 { 0.0 } else { figures.sent_bytes as f64 * 100.0 / figures.dirty_bytes as f64 }
}

fn millions(instructions: u64) -> String {
    format!("{:.1} M instructions", instructions as f64 / 1e6)
}

fn state(vm: &VmView) -> String {
    match vm.replicas.first().and_then(|primary| primary.sync) {
        Some(sync) => format!(
            "{}: {} {}/{}",
            vm.protection.state,
            sync.phase,
            human_bytes(sync.done_bytes),
            human_bytes(sync.total_bytes)
        ),
        None => vm.protection.to_string(),
    }
}
