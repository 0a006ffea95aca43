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
use terminal::error_text::error_text;
use terminal::interrupt;
use terminal::output::{cut, human_bits_per_s, human_bytes, print_json, print_line, say, table, terminal_size};

use super::daemon::{DaemonArguments, DaemonConnection, path_segment};
use super::keys::Keys;
use super::vm::explain;

/// Time from one table to the next.
const REFRESH: Duration = Duration::from_secs(1);
/// How soon Ctrl-C is heeded in between.
const HEED: Duration = Duration::from_millis(50);
/// The key that leaves.
const LEAVE_KEY: u8 = b'q';

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
A terminal that is too narrow for all of them shows those that matter most; q or Ctrl-C leaves.")]
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
    let vm = arguments.vm.as_deref().unwrap_or_default();
    show(arguments).map_err(|error| explain(error, vm, &arguments.daemon))
}

fn show(arguments: &TopArguments) -> Result<ExitCode> {
    let mut daemon = arguments.daemon.daemon()?;
    interrupt::catch(|| {})?;
    let mut rates = Rates::default();
    let mut vms = Ok(views(&daemon, arguments.vm.as_deref())?);
    let screen = Screen::new(!arguments.once && !arguments.daemon.json)?;
    loop {
        match &vms {
            Ok(vms) if arguments.daemon.json => print_json(vms)?,
            Ok(vms) => screen.show(|width, height| rows(vms, &mut rates).text(width, height))?,
            // The VMs go on without their host's daemon, and are shown again once it answers.
            Err(error) if arguments.daemon.json => say(format_args!("{}; trying again", error_text(error))),
            Err(error) => screen.show(|width, _| wrapped(&format!("{}; trying again", error_text(error)), width))?,
        }
        if arguments.once {
            return Ok(ExitCode::SUCCESS);
        }
        let next = Instant::now() + REFRESH;
        while Instant::now() < next {
            if interrupt::is_requested() || screen.is_left_within(HEED) {
                return Ok(ExitCode::SUCCESS);
            }
        }
        vms = views(&daemon, arguments.vm.as_deref());
        if vms.is_err() {
            // A daemon that was started anew may answer elsewhere.
            daemon = arguments.daemon.daemon().unwrap_or(daemon);
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
    /// Where it is no terminal, or not shown again and again, nothing is cleared.
    keys: Option<Keys>,
}

impl Screen {
    fn new(is_live: bool) -> Result<Self> {
        let is_cleared = is_live && io::stdout().is_terminal();
        let keys = is_cleared.then(Keys::watch).transpose()?;
        if is_cleared {
            let _ = write!(io::stdout(), "\x1b[?25l");
        }
        Ok(Self { keys })
    }

    /// Shows what there is room for, in columns and lines; all of it where it is no terminal.
    fn show(&self, text: impl FnOnce(Option<usize>, Option<usize>) -> String) -> Result<()> {
        let size = terminal_size();
        if self.keys.is_some() {
            let _ = write!(io::stdout(), "\x1b[H\x1b[J");
        }
        let height = size.filter(|(_, lines)| self.keys.is_some() && *lines > 1).map(|(_, lines)| lines - 1);
        print_line(&text(size.map(|(columns, _)| columns), height))?;
        Ok(io::stdout().flush()?)
    }

    /// Waits for so long, or until the user wants to leave; whether that is so.
    fn is_left_within(&self, time: Duration) -> bool {
        match &self.keys {
            Some(keys) => keys.wait_for(LEAVE_KEY, time),
            None => {
                thread::sleep(time);
                false
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.keys.is_some() {
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

/// Columns, in the order in which they are shown; the numbers say which matter most where there is no room for all.
const COLUMNS: [(&str, u8); 14] = [
    ("VM", 0),
    ("PRIMARY", 2),
    ("SECONDARY", 3),
    ("MODE", 6),
    ("EPOCH", 9),
    ("DIRTY", 11),
    ("PAUSE", 8),
    ("SENT/s", 7),
    ("ADDED", 4),
    ("LAG", 5),
    ("DIGESTS", 12),
    ("WAITING", 13),
    ("MEMORY", 10),
    ("STATE", 1),
];
/// Spaces between two columns.
const GAP: usize = 2;
/// Least width of the last column, which is cut off rather than left out.
const STATE_MIN: usize = 24;
/// Greatest width of the first column on a terminal.
const NAME_MAX: usize = 24;

/// A row for each VM, with a cell for each column.
struct Rows(Vec<Vec<String>>);

impl Rows {
    /// As a table of at most `width` characters and `height` lines, without bounds where there are none.
    fn text(&self, width: Option<usize>, height: Option<usize>) -> String {
        let shown = self.columns(width);
        let mut rows = table(&shown.iter().map(|&(number, _)| COLUMNS[number].0).collect::<Vec<_>>());
        let room = height.map_or(usize::MAX, |height| height.saturating_sub(1));
        let left_out = if self.0.len() > room { self.0.len() - room.saturating_sub(1) } else { 0 };
        for row in self.0.iter().take(self.0.len() - left_out) {
            let cell = |&(number, width): &(usize, usize)| cut(row.get(number).map_or("", String::as_str), width);
            rows.add_row(shown.iter().map(cell).collect::<Vec<_>>());
        }
        let text = rows.trim_fmt();
        if left_out > 0 { format!("{text}\nand {left_out} more") } else { text }
    }

    /// The columns for which there is room, and how much.
    fn columns(&self, width: Option<usize>) -> Vec<(usize, usize)> {
        let width_of = |number: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(number)).map(|cell| cell.chars().count());
            cells.chain([COLUMNS[number].0.len()]).max().unwrap_or(0)
        };
        let mut by_importance: Vec<usize> = (0..COLUMNS.len()).collect();
        by_importance.sort_by_key(|&number| COLUMNS[number].1);
        let state = COLUMNS.len() - 1;
        let mut left = width.unwrap_or(usize::MAX);
        let mut shown = Vec::new();
        for number in by_importance {
            let needed = match number {
                // What is left over in the end is the state's.
                number if number == state => width_of(number).min(STATE_MIN),
                // Names of VMs may be long, and are cut off where they would take the room of all else.
                0 => width_of(number)
                    .min(width.map_or(usize::MAX, |width| NAME_MAX.min(width.saturating_sub(STATE_MIN + GAP)))),
                number => width_of(number),
            };
            let gap = if shown.is_empty() { 0 } else { GAP };
            if shown.len() < 2 || needed + gap <= left {
                left = left.saturating_sub(needed + gap);
                shown.push((number, needed));
            }
        }
        for (number, width) in &mut shown {
            if *number == state {
                *width = width.saturating_add(left).min(width_of(state));
            }
        }
        shown.sort_unstable();
        shown
    }
}

/// A text in lines of at most so many characters.
fn wrapped(text: &str, width: Option<usize>) -> String {
    let characters: Vec<char> = text.chars().collect();
    let lines = characters.chunks(width.unwrap_or(usize::MAX).max(1)).map(|line| line.iter().collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

fn rows(vms: &[VmView], rates: &mut Rates) -> Rows {
    let mut rows = Vec::new();
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
        rows.push(row);
    }
    Rows(rows)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Vec<String> {
        let state = "Not protected: need secondary (no host for it: host b has 128 MiB of memory left, 256 MiB are needed), since 12 s";
        let cells = ["a", "b", "mirror", "19.9 ms, 50/s", "1234", "0.07/0.11 ms", "1.20 MiB (3%)", "0.28/1.10 ms", "1"];
        let more = ["-", "0 (0 B)", "240.00 MiB", state];
        [name].iter().chain(&cells).chain(&more).map(|cell| (*cell).to_owned()).collect()
    }

    /// It wrapped, and nothing could be told from it.
    #[test]
    fn row_24_a_table_fits_a_terminal_of_80_columns() {
        let rows = Rows(vec![row("shop"), row("a-name-that-is-longer-than-others")]);
        for width in [40, 60, 80, 100, 132, 200, 300] {
            let text = rows.text(Some(width), None);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(
                text.contains("VM") && text.contains("STATE") && text.contains("Not protected"),
                "{width}:\n{text}"
            );
        }
        let text = Rows(vec![row("shop")]).text(Some(80), None);
        for heading in ["PRIMARY", "SECONDARY", "ADDED", "STATE"] {
            assert!(text.contains(heading), "{text}");
        }
    }

    #[test]
    fn row_24_all_columns_are_there_where_there_is_room_or_no_terminal() {
        let rows = Rows(vec![row("shop")]);
        for text in [rows.text(None, None), rows.text(Some(1000), None)] {
            assert!(COLUMNS.iter().all(|(heading, _)| text.contains(heading)), "{text}");
            assert!(text.contains("256 MiB are needed), since 12 s"), "{text}");
        }
    }

    #[test]
    fn row_24_vms_for_which_there_is_no_line_are_counted() {
        let rows = Rows((0..10).map(|number| row(&format!("vm{number}"))).collect());
        let text = rows.text(Some(80), Some(6));
        assert_eq!((text.lines().count(), text.lines().last()), (6, Some("and 6 more")), "{text}");
        assert_eq!(rows.text(Some(80), Some(11)).lines().count(), 11);
    }

    #[test]
    fn row_24_what_is_wrong_fits_a_terminal_as_well() {
        let text = "the daemon of host a does not answer at 127.0.0.1:7411; trying again";
        let lines = wrapped(text, Some(40));
        assert!(lines.lines().all(|line| line.chars().count() <= 40), "{lines}");
        assert_eq!(lines.replace('\n', ""), text);
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped("ab", Some(0)), "a\nb");
    }
}
