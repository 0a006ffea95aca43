//! `twinvm ft`: fault tolerance of VMs.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use api::figures::Figures;
use api::messages::{FtAction, FtOptions, FtPrice, VmView};
use api::status::ProtectionState;
use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use spec::FtMode;
use terminal::choices::ModeName;
use terminal::output::{ask, human_bits_per_s, human_bytes, print_json, print_line};

use super::daemon::{DaemonArguments, DaemonConnection, path_segment};
use super::vm::explain;
use super::wait::{Look, Patience};

/// What most actions take.
const NO_OPTIONS: FtOptions = FtOptions { mode: None };

#[derive(Subcommand)]
pub enum FtCommand {
    /// Protect a VM: keep a secondary on another host that takes over when the primary's fails
    #[command(after_help = "\
It shows first what is reserved a second time, on the secondary's host: memory, vCPUs and disk space. Then it copies disks
and memory while the VM goes on, and returns when the VM is protected. In a terminal it asks before it begins.")]
    On(OnArguments),
    /// Change how the secondary follows its primary, without losing protection
    #[command(after_help = "\
The VM goes on, and is protected all the time. It returns when the secondary follows in the new mode. Of a VM that is not
protected now, the mode is kept for when it is.")]
    Mode(ModeArguments),
    /// Protect a VM no more: its secondary and the secondary's disks are removed
    Off(VmArguments),
    /// Let the secondary go for now; its disks are kept, and so is its reservation until the VM is off
    Suspend(VmArguments),
    /// Find a secondary again
    Resume(WaitArguments),
    /// Show whether a VM is protected; if not, why and since when
    Status(VmArguments),
    /// Test: kill the primary's process; the secondary takes over, and another one is made
    Failover(WaitArguments),
    /// Hand the VM over to the secondary's host; it is protected from there again
    Switchover(WaitArguments),
    /// Test: end the secondary; another one is made at once
    RestartSecondary(WaitArguments),
}

#[derive(Args, Clone)]
pub struct VmArguments {
    /// Name of the VM
    vm: String,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct WaitArguments {
    #[command(flatten)]
    vm: VmArguments,
    /// Return as soon as it has begun
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after so long; what has begun goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

#[derive(Args)]
pub struct OnArguments {
    #[command(flatten)]
    wait: WaitArguments,
    /// How the secondary follows its primary [default: as it was last time, at first mirror]
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
pub struct ModeArguments {
    #[command(flatten)]
    wait: WaitArguments,
    /// How the secondary follows its primary
    #[arg(value_enum)]
    mode: ModeName,
}

pub fn run(command: FtCommand) -> Result<ExitCode> {
    let VmArguments { vm, daemon } = command.vm().clone();
    carry_out(command).map_err(|error| explain(error, &vm, &daemon))
}

impl FtCommand {
    fn vm(&self) -> &VmArguments {
        match self {
            Self::On(arguments) => &arguments.wait.vm,
            Self::Mode(arguments) => &arguments.wait.vm,
            Self::Off(vm) | Self::Suspend(vm) | Self::Status(vm) => vm,
            Self::Resume(wait) | Self::Failover(wait) | Self::Switchover(wait) | Self::RestartSecondary(wait) => {
                &wait.vm
            }
        }
    }
}

fn carry_out(command: FtCommand) -> Result<ExitCode> {
    match command {
        FtCommand::On(arguments) => on(&arguments),
        FtCommand::Mode(arguments) => change_mode(&arguments),
        FtCommand::Off(arguments) => act(&arguments, FtAction::Off, "its secondary was removed"),
        FtCommand::Suspend(arguments) => act(&arguments, FtAction::Suspend, "its secondary was let go"),
        FtCommand::Resume(arguments) => act_and_wait(&arguments, FtAction::Resume, NO_OPTIONS, is_protected),
        FtCommand::Status(arguments) => {
            let view = view(&arguments.daemon.daemon()?, &arguments.vm)?;
            if arguments.daemon.json {
                print_json(&view)?
            } else {
                print_status(&view)?
            }
            Ok(ExitCode::SUCCESS)
        }
        FtCommand::Failover(arguments) => move_vm(&arguments, FtAction::Failover),
        FtCommand::Switchover(arguments) => move_vm(&arguments, FtAction::Switchover),
        FtCommand::RestartSecondary(arguments) => {
            act_and_wait(&arguments, FtAction::RestartSecondary, NO_OPTIONS, is_protected)
        }
    }
}

fn view(daemon: &DaemonConnection, vm: &str) -> Result<VmView> {
    daemon.get(&format!("/v1/vms/{}", path_segment(vm)))
}

fn begin(daemon: &DaemonConnection, vm: &str, action: FtAction, options: FtOptions) -> Result<VmView> {
    daemon.post(&format!("/v1/vms/{}/ft/{}", path_segment(vm), action.label()), Some(&options))
}

/// Whether a VM survives the loss of its host now.
pub fn is_protected(view: &VmView) -> bool {
    view.protection.state == ProtectionState::Protected
}

/// How the secondary of a protected VM follows now. A first copy ends with checkpoints whatever the mode, and a change takes a moment.
fn followed(view: &VmView) -> Option<FtMode> {
    let primary = view.replicas.first().filter(|_| view.running && is_protected(view))?;
    Some(if primary.figures.lockstep.is_some() { FtMode::Lockstep } else { FtMode::Mirror })
}

/// Protected, in the mode that is wanted.
fn is_settled(view: &VmView) -> bool {
    followed(view) == Some(view.ft.mode)
}

fn act(arguments: &VmArguments, action: FtAction, done: &str) -> Result<ExitCode> {
    let view = begin(&arguments.daemon.daemon()?, &arguments.vm, action, NO_OPTIONS)?;
    if arguments.daemon.json {
        print_json(&view)?;
    } else {
        print_line(&format!("VM {}: {done}", arguments.vm))?;
        print_line(&view.protection.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn on(arguments: &OnArguments) -> Result<ExitCode> {
    let VmArguments { vm, daemon: how } = &arguments.wait.vm;
    let daemon = how.daemon()?;
    let price: FtPrice = daemon.get(&format!("/v1/vms/{}/ft/price", path_segment(vm)))?;
    let is_on = view(&daemon, vm)?.ft.enabled;
    if let (Some(obstacle), false) = (&price.obstacle, is_on) {
        bail!("no host can take the secondary of VM {vm}: {obstacle}; see the hosts with `twinvm host list`");
    }
    if !how.json {
        let secondary = price.secondary.as_deref().unwrap_or("the secondary's host");
        print_line(&format!("Protection of VM {vm} reserves on {secondary}, beside what host {} has:", price.primary))?;
        print_line(&format!("  memory  {}", human_bytes(price.memory_bytes)))?;
        print_line(&format!("  vCPUs   {}", price.cpus))?;
        print_line(&format!("  disks   up to {}", human_bytes(price.disk_bytes)))?;
        let _ = io::stdout().flush();
        if !arguments.yes && io::stdin().is_terminal() && !confirmed()? {
            bail!("nothing was changed");
        }
    }
    let options = FtOptions { mode: arguments.mode.map(FtMode::from) };
    act_and_wait(&arguments.wait, FtAction::On, options, is_settled)
}

fn change_mode(arguments: &ModeArguments) -> Result<ExitCode> {
    let VmArguments { vm, daemon: how } = &arguments.wait.vm;
    let options = FtOptions { mode: Some(arguments.mode.into()) };
    let is_protected_now = is_protected(&view(&how.daemon()?, vm)?);
    // There is nothing to wait for where nothing has to change.
    act_and_wait(&arguments.wait, FtAction::Mode, options, |view| !is_protected_now || is_settled(view))
}

fn confirmed() -> Result<bool> {
    Ok(matches!(ask("Turn it on? [Y/n] ")?.as_str(), "" | "y" | "yes"))
}

fn act_and_wait(
    arguments: &WaitArguments,
    action: FtAction,
    options: FtOptions,
    done: impl Fn(&VmView) -> bool,
) -> Result<ExitCode> {
    let VmArguments { vm, daemon: how } = &arguments.vm;
    let daemon = how.daemon()?;
    let before = view(&daemon, vm)?;
    let begun = begin(&daemon, vm, action, options)?;
    // A secondary that is made anew leaves the VM as protected as before for a moment.
    let is_new = |view: &VmView| {
        action != FtAction::RestartSecondary || view.protection.since_unix_ms != before.protection.since_unix_ms
    };
    let last = if arguments.no_wait || !begun.running {
        begun
    } else {
        wait(&daemon, arguments, |view| is_new(view) && done(view))?
    };
    if how.json {
        print_json(&last)?
    } else {
        print_status(&last)?
    }
    Ok(ExitCode::SUCCESS)
}

/// Failover and switchover: done when the VM runs on another host and is protected there, or cannot be.
fn move_vm(arguments: &WaitArguments, action: FtAction) -> Result<ExitCode> {
    let VmArguments { vm, daemon: how } = &arguments.vm;
    let daemon = how.daemon()?;
    let from = view(&daemon, vm)?.host;
    let begun = begin(&daemon, vm, action, NO_OPTIONS)?;
    let last = if arguments.no_wait {
        begun
    } else {
        let moved = wait(&daemon, arguments, |view| view.running && view.host != from)?;
        if !how.json {
            print_line(&format!("VM {vm} runs on host {}", moved.host))?;
        }
        let mut alone = Alone::default();
        wait(&daemon, arguments, |view| is_protected(view) || alone.is_for_long(view))?
    };
    if how.json {
        print_json(&last)?;
    } else {
        print_status(&last)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// For how long no host must have been found for a secondary, until nobody waits for one any longer.
const NO_HOST: Duration = Duration::from_secs(10);

/// Whether a VM goes without a secondary because no host can take one.
#[derive(Default)]
pub struct Alone {
    since: Option<Instant>,
}

impl Alone {
    /// Whether it has been so for a while.
    pub fn is_for_long(&mut self, view: &VmView) -> bool {
        let is_alone = view.protection.state == ProtectionState::NeedSecondary && view.note.is_some();
        self.since = if is_alone { self.since.or_else(|| Some(Instant::now())) } else { None };
        self.since.is_some_and(|since| since.elapsed() >= NO_HOST)
    }
}

/// Waits until the VM is as wanted, with a progress bar on a terminal.
fn wait(daemon: &DaemonConnection, arguments: &WaitArguments, mut done: impl FnMut(&VmView) -> bool) -> Result<VmView> {
    let vm = &arguments.vm.vm;
    let patience = Patience {
        timeout: Duration::from_secs(arguments.timeout),
        late: &|state| {
            format!("not within {} s: {state}; what has begun goes on, see `twinvm ft status {vm}`", arguments.timeout)
        },
        interrupted: &|state| format!("not waited for; what has begun goes on: {state}"),
    };
    patience.wait(&copy_bar(), |bar| {
        let view = view(daemon, vm)?;
        if done(&view) {
            return Ok(Look::Done(view));
        }
        if !view.ft.enabled || view.ft.suspended {
            bail!("somebody has turned it off meanwhile: {}", view.protection);
        }
        Ok(Look::Waiting(how_it_stands(bar, &view)))
    })
}

/// A progress bar for first copies. It is hidden where standard error is no terminal.
pub fn copy_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg:50} {bar:30} {binary_bytes}/{binary_total_bytes}");
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// How a first copy stands, or what there is to say without one; the bar shows it.
pub fn how_it_stands(bar: &ProgressBar, view: &VmView) -> String {
    match view.replicas.first().and_then(|primary| primary.sync) {
        Some(sync) => {
            bar.set_length(sync.total_bytes);
            bar.set_position(sync.done_bytes);
            sync.phase.to_string()
        }
        None => view.protection.to_string(),
    }
}

fn print_status(view: &VmView) -> Result<()> {
    print_line(&format!("VM {}: {}", view.name, view.protection))?;
    let ft = match (view.ft.enabled, view.ft.suspended) {
        (false, _) => "off",
        (true, true) => "suspended",
        (true, false) => "on",
    };
    let by = match view.ft.mode {
        FtMode::Mirror => "by checkpoints (mirror)",
        FtMode::Lockstep => "by executing the same (lockstep)",
    };
    let followed = followed(view);
    let yet = match followed {
        Some(FtMode::Mirror) if view.ft.mode == FtMode::Lockstep => "; by checkpoints until that has begun",
        Some(FtMode::Lockstep) if view.ft.mode == FtMode::Mirror => "; by executing until that has begun",
        _ => "",
    };
    let host = if view.running { view.host.clone() } else { format!("{} (not running)", view.host) };
    for (what, value) in [
        ("fault tolerance", format!("{ft}, {by}{yet}")),
        ("primary", host),
        ("secondary", view.secondary.clone().unwrap_or_else(|| "-".to_owned())),
        ("generation", view.generation.to_string()),
    ] {
        print_line(&format!("  {what:17}{value}"))?;
    }
    for replica in &view.replicas {
        for fault in &replica.faults {
            print_line(&format!("  {:17}host {}: {fault}", "broken", replica.host))?;
        }
    }
    if let Some(primary) = view.replicas.first().filter(|_| followed.is_some()) {
        for (what, value) in cost(&primary.figures, view.lag_ms_max) {
            print_line(&format!("  {what:17}{value}"))?;
        }
    }
    if let Some(takeover) = view.replicas.first().and_then(|primary| primary.figures.last_takeover) {
        print_line(&format!(
            "  {:17}detected in {:.1} ms, arbitrated in {:.1} ms, restored in {:.1} ms",
            "last takeover", takeover.detected_ms, takeover.arbitration_ms, takeover.restore_ms
        ))?;
    }
    if let Some(faults) = view.replicas.first().and_then(|primary| primary.figures.triple_faults_text()) {
        print_line(&format!("  {:17}{faults}", "crashes"))?;
    }
    Ok(())
}

/// What protection costs a VM that has it.
fn cost(figures: &Figures, lag_ms_max: u32) -> Vec<(&'static str, String)> {
    let delay = figures.latency_added_ms;
    let delay = ("output waits", format!("{:.2} ms (p50), {:.2} ms (p99)", delay.p50, delay.p99));
    match &figures.lockstep {
        None => vec![("lag", checkpoints(figures.lag_epochs)), delay],
        Some(log) => vec![
            (
                "lag",
                format!(
                    "{:.1} ms, {} instructions; at most {lag_ms_max} ms",
                    log.lag_ms,
                    HumanCount(log.lag_instructions)
                ),
            ),
            ("log", human_bits_per_s(log.log_bits_per_s)),
            delay,
            ("digests", format!("{} compared; divergences: {}", HumanCount(log.digests), log.divergences)),
        ],
    }
}

fn checkpoints(count: u64) -> String {
    format!("{count} {}", if count == 1 { "checkpoint" } else { "checkpoints" })
}

#[cfg(test)]
mod tests {
    use api::figures::LockstepFigures;

    use super::*;

    #[test]
    fn what_lockstep_costs_is_shown_with_its_bound() {
        let log = LockstepFigures {
            lag_instructions: 1_234_567,
            lag_ms: 2.25,
            log_bits_per_s: 56_700.0,
            digests: 12_345,
            divergences: 1,
            ..LockstepFigures::default()
        };
        let figures = Figures { lockstep: Some(log), lag_epochs: 3, ..Figures::default() };
        let lines: Vec<String> =
            cost(&figures, 100).into_iter().map(|(what, value)| format!("{what}: {value}")).collect();
        assert_eq!(
            lines,
            [
                "lag: 2.2 ms, 1,234,567 instructions; at most 100 ms",
                "log: 56.7 kbit/s",
                "output waits: 0.00 ms (p50), 0.00 ms (p99)",
                "digests: 12,345 compared; divergences: 1",
            ]
        );
        let mirror = cost(&Figures { lockstep: None, ..figures }, 100);
        assert_eq!(mirror.first(), Some(&("lag", "3 checkpoints".to_owned())));
    }
}
