//! Looking at recovery points, and removing them.

use anyhow::{Result, bail};
use api::backups::{ForgetPoints, Forgotten, PointView};
use clap::Args;
use terminal::output::{human_bytes, print_json, print_line, print_table, say, table};

use super::{RepositoryArguments, TIMEOUT, when};
use crate::cli::daemon::path_segment;

#[derive(Args)]
pub struct ListArguments {
    /// Only those of this VM
    vm: Option<String>,
    #[command(flatten)]
    repository: RepositoryArguments,
}

#[derive(Args)]
pub struct PointArguments {
    /// The recovery point: the beginning of its name, or latest:VM
    point: String,
    #[command(flatten)]
    repository: RepositoryArguments,
}

#[derive(Args)]
pub struct ForgetArguments {
    /// One recovery point: the beginning of its name
    #[arg(conflicts_with_all = ["vm", "keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "dry_run"])]
    point: Option<String>,
    /// Only those of this VM
    #[arg(long)]
    vm: Option<String>,
    /// Keep the newest N of each VM
    #[arg(long, value_name = "N", default_value_t)]
    keep_last: u32,
    /// Keep the newest of each of N hours that have one
    #[arg(long, value_name = "N", default_value_t)]
    keep_hourly: u32,
    /// Keep the newest of each of N days
    #[arg(long, value_name = "N", default_value_t)]
    keep_daily: u32,
    /// Keep the newest of each of N weeks
    #[arg(long, value_name = "N", default_value_t)]
    keep_weekly: u32,
    /// Keep the newest of each of N months
    #[arg(long, value_name = "N", default_value_t)]
    keep_monthly: u32,
    /// Only say which would be forgotten
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    repository: RepositoryArguments,
}

fn fetch(repository: &RepositoryArguments) -> Result<Vec<PointView>> {
    let (daemon, path) = repository.open()?;
    daemon.get(&format!("{path}/points"))
}

pub fn list(arguments: &ListArguments) -> Result<()> {
    let mut points = fetch(&arguments.repository)?;
    points.retain(|point| arguments.vm.is_none() || point.vm == arguments.vm);
    if arguments.repository.daemon.json {
        return print_json(&points);
    }
    if points.is_empty() {
        say("there are no recovery points; `twinvm backup run VM` writes one");
        return Ok(());
    }
    let mut rows = table(&["POINT", "VM", "TAKEN", "DATA", "NEW", "HOST"]);
    let none = || "-".to_owned();
    for point in points {
        let vm = point.vm.unwrap_or_else(|| point.unreadable.unwrap_or_else(none));
        let (data, new) = (human_bytes(point.data_bytes), human_bytes(point.added_bytes));
        rows.add_row([point.id, vm, when(point.taken_unix_ms), data, new, point.host.unwrap_or_else(none)]);
    }
    print_table(&rows)
}

pub fn show(arguments: &PointArguments) -> Result<()> {
    let points = fetch(&arguments.repository)?;
    let point = find(points, &arguments.point)?;
    if arguments.repository.daemon.json {
        return print_json(&point);
    }
    print_line(&format!("recovery point {} in repository {}", point.id, point.repository))?;
    if let Some(why) = &point.unreadable {
        return print_line(&format!("not readable: {why}"));
    }
    print_line(&format!("VM        {}", point.vm.as_deref().unwrap_or("-")))?;
    print_line(&format!("host      {}", point.host.as_deref().unwrap_or("-")))?;
    print_line(&format!("taken     {}", when(point.taken_unix_ms)))?;
    print_line(&format!("finished  {}", when(point.finished_unix_ms)))?;
    print_line(&format!("data      {}, {} of it new", human_bytes(point.data_bytes), human_bytes(point.added_bytes)))?;
    for volume in &point.volumes {
        print_line(&format!("{:<9} {}", volume.name, human_bytes(volume.bytes)))?;
    }
    Ok(())
}

/// The point that is meant.
fn find(points: Vec<PointView>, wanted: &str) -> Result<PointView> {
    let mut found: Vec<PointView> = match wanted.strip_prefix("latest:") {
        Some(vm) => points.into_iter().filter(|point| point.vm.as_deref() == Some(vm)).collect(),
        None => points.into_iter().filter(|point| point.id.starts_with(wanted)).collect(),
    };
    if found.len() > 1 && !wanted.starts_with("latest:") {
        bail!("{wanted} is the beginning of more than one recovery point: give more of it");
    }
    match found.pop() {
        Some(point) => Ok(point),
        None => bail!("there is no recovery point {wanted}; see `twinvm backup list`"),
    }
}

pub fn forget(arguments: &ForgetArguments) -> Result<()> {
    let (daemon, path) = arguments.repository.open()?;
    let forgotten: Forgotten = match &arguments.point {
        Some(point) => daemon.delete(&format!("{path}/points/{}", path_segment(point)), None::<&()>)?,
        None => {
            let request = ForgetPoints {
                vm: arguments.vm.clone(),
                last: arguments.keep_last,
                hourly: arguments.keep_hourly,
                daily: arguments.keep_daily,
                weekly: arguments.keep_weekly,
                monthly: arguments.keep_monthly,
                dry_run: arguments.dry_run,
            };
            daemon.post_within(&format!("{path}/forget"), Some(&request), TIMEOUT)?
        }
    };
    if arguments.repository.daemon.json {
        return print_json(&forgotten);
    }
    for point in &forgotten.points {
        print_line(&format!("{}{point}", if arguments.dry_run { "would be forgotten: " } else { "forgotten: " }))?;
    }
    print_line(&format!(
        "{} recovery points are kept; `twinvm backup prune` gives the space of others back",
        forgotten.kept
    ))
}
