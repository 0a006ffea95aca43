//! What Prometheus reads, in OpenMetrics text over plain HTTP: every figure of the replicas that run on this host, and the state
//! of the VMs that are at home here.

mod devices;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use api::figures::Figures;
use api::messages::VmView;
use api::status::{ProtectionState, ReplicaStatus};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use spec::FtMode;
use tokio::net::TcpListener;

use super::daemon::Daemon;

type Labels = Vec<(&'static str, String)>;

/// The media type of OpenMetrics.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/metrics`. Does not end by itself.
pub async fn serve(listener: TcpListener, daemon: Arc<Daemon>) {
    let router = Router::new().route("/metrics", get(answer)).with_state(daemon);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!("metrics are served no more: {error}");
    }
}

async fn answer(State(daemon): State<Arc<Daemon>>) -> Response {
    let collected = tokio::task::spawn_blocking(move || daemon.collect()).await;
    match collected.map_err(|error| error.to_string()).and_then(|seen| text(&seen).map_err(|error| error.to_string())) {
        Ok(text) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

/// What metrics are made of.
struct Seen {
    host: String,
    /// Replicas that run here.
    replicas: Vec<ReplicaStatus>,
    /// VMs at home here; none if the store cannot be read.
    vms: Vec<VmView>,
    is_store_reachable: bool,
}

impl Daemon {
    fn collect(&self) -> Seen {
        let local = self.local_vms();
        let vms = self.vms_at_home(&local).inspect_err(|error| tracing::debug!("metrics: {error}")).unwrap_or_default();
        let is_store_reachable = self.is_store_reachable();
        Seen { host: self.host().to_owned(), replicas: local.replicas, vms, is_store_reachable }
    }
}

/// A gauge of one value for each replica.
struct GaugeOf {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: fn(&Figures) -> f64,
}

/// A counter of one value for each replica.
struct CounterOf {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: fn(&Figures) -> u64,
}

const GAUGES: [GaugeOf; 19] = [
    GaugeOf { name: "epoch", help: "The last epoch that the secondary holds", unit: None, value: |f| f.epoch as f64 },
    GaugeOf {
        name: "epochs_per_second",
        help: "Epochs per second, of the last few seconds",
        unit: None,
        value: |f| f.epochs_per_s,
    },
    GaugeOf {
        name: "epoch_length",
        help: "Median length of an epoch, of the newest ones",
        unit: Some(Unit::Seconds),
        value: |f| f.epoch_ms / 1e3,
    },
    GaugeOf {
        name: "epoch_dirty_pages",
        help: "Median number of pages changed in an epoch, of the newest ones",
        unit: None,
        value: |f| f.dirty_pages as f64,
    },
    GaugeOf {
        name: "checkpoint_pause_last",
        help: "How long the last checkpoint paused the guest",
        unit: Some(Unit::Seconds),
        value: |f| f.pause_us.last / 1e6,
    },
    GaugeOf {
        name: "lag_epochs",
        help: "Epochs that the secondary has not yet acknowledged",
        unit: None,
        value: |f| f.lag_epochs as f64,
    },
    GaugeOf {
        name: "lockstep_lag",
        help: "Lockstep: age of the oldest part of the log that the secondary has not executed",
        unit: Some(Unit::Seconds),
        value: |f| f.lockstep.unwrap_or_default().lag_ms / 1e3,
    },
    GaugeOf {
        name: "lockstep_lag_instructions",
        help: "Lockstep: instructions whose log the secondary holds, and that it has not executed",
        unit: None,
        value: |f| f.lockstep.unwrap_or_default().lag_instructions as f64,
    },
    GaugeOf {
        name: "lockstep_log_bits_per_second",
        help: "Lockstep: bandwidth of the log, of the last few seconds",
        unit: None,
        value: |f| f.lockstep.unwrap_or_default().log_bits_per_s,
    },
    GaugeOf {
        name: "throttled_time",
        help: "For how long the guest has waited because the secondary was behind, since protection began",
        unit: Some(Unit::Seconds),
        value: |f| f.throttled_ms / 1e3,
    },
    GaugeOf {
        name: "output_waiting_frames",
        help: "Frames that wait for their commit",
        unit: None,
        value: |f| f.waiting_frames as f64,
    },
    GaugeOf {
        name: "output_waiting",
        help: "Bytes of the frames that wait for their commit",
        unit: Some(Unit::Bytes),
        value: |f| f.waiting_bytes as f64,
    },
    GaugeOf {
        name: "replica_resident_memory",
        help: "Resident memory of the replica's process, the guest's included",
        unit: Some(Unit::Bytes),
        value: |f| f.memory_bytes as f64,
    },
    GaugeOf {
        name: "suspicion_time",
        help: "After how much silence the other replica is taken for lost, by what the link was like; 0 without one",
        unit: Some(Unit::Seconds),
        value: |f| f.suspicion_ms / 1e3,
    },
    GaugeOf {
        name: "longest_silence",
        help: "The longest silence of the other replica that is remembered",
        unit: Some(Unit::Seconds),
        value: |f| f.silence_ms_max / 1e3,
    },
    GaugeOf {
        name: "takeover_timestamp",
        help: "Unix time of the last takeover by this replica; 0 if there was none",
        unit: Some(Unit::Seconds),
        value: |f| f.last_takeover.unwrap_or_default().at_unix_ms as f64 / 1e3,
    },
    GaugeOf {
        name: "takeover_detection",
        help: "From the peer's last sign of life to the suspicion, at the last takeover",
        unit: Some(Unit::Seconds),
        value: |f| f.last_takeover.unwrap_or_default().detected_ms / 1e3,
    },
    GaugeOf {
        name: "takeover_arbitration",
        help: "How long arbitration in the cluster store took, at the last takeover",
        unit: Some(Unit::Seconds),
        value: |f| f.last_takeover.unwrap_or_default().arbitration_ms / 1e3,
    },
    GaugeOf {
        name: "takeover_restore",
        help: "From won arbitration to the running guest, at the last takeover",
        unit: Some(Unit::Seconds),
        value: |f| f.last_takeover.unwrap_or_default().restore_ms / 1e3,
    },
];

const COUNTERS: [CounterOf; 10] = [
    CounterOf { name: "dirty", help: "Bytes of changed pages", unit: Some(Unit::Bytes), value: |f| f.dirty_bytes },
    CounterOf {
        name: "sent",
        help: "Bytes sent to the other replica",
        unit: Some(Unit::Bytes),
        value: |f| f.sent_bytes,
    },
    CounterOf {
        name: "lockstep_log",
        help: "Lockstep: bytes of the log",
        unit: Some(Unit::Bytes),
        value: |f| f.lockstep.unwrap_or_default().log_bytes,
    },
    CounterOf {
        name: "lockstep_inbound",
        help: "Lockstep: bytes of inbound frames in the log",
        unit: Some(Unit::Bytes),
        value: |f| f.lockstep.unwrap_or_default().inbound_bytes,
    },
    CounterOf {
        name: "lockstep_segments",
        help: "Lockstep: segments of the log",
        unit: None,
        value: |f| f.lockstep.unwrap_or_default().segments,
    },
    CounterOf {
        name: "lockstep_digests",
        help: "Lockstep: digests of both replicas' states that were compared",
        unit: None,
        value: |f| f.lockstep.unwrap_or_default().digests,
    },
    CounterOf {
        name: "lockstep_divergences",
        help: "Lockstep: digests that differed",
        unit: None,
        value: |f| f.lockstep.unwrap_or_default().divergences,
    },
    CounterOf {
        name: "throttled",
        help: "Times that the guest had to wait because the secondary was behind",
        unit: None,
        value: |f| f.throttled,
    },
    CounterOf {
        name: "triple_faults",
        help: "Times that the guest was reset by a triple fault",
        unit: None,
        value: |f| f.triple_faults,
    },
    CounterOf { name: "failovers", help: "Takeovers by this replica", unit: None, value: |f| f.failovers },
];

/// The metrics, in OpenMetrics text.
fn text(seen: &Seen) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("twinvm");
    let mut families = Families { registry: &mut registry, host: &seen.host, replicas: &seen.replicas };
    families.of_host(seen.is_store_reachable);
    families.of_vms(&seen.vms);
    families.of_faults();
    families.of_devices();
    for GaugeOf { name, help, unit, value } in GAUGES {
        families.gauge(name, help, unit, |status| vec![(None, value(&status.figures))]);
    }
    families.gauge("checkpoint_pause", "How long checkpoints pause the guest", Some(Unit::Seconds), |status| {
        let pause = status.figures.pause_us;
        quantiles([("0.5", pause.p50 / 1e6), ("0.99", pause.p99 / 1e6)])
    });
    families.gauge("output_delay", "How long output waits for its commit", Some(Unit::Seconds), |status| {
        let latency = status.figures.latency_added_ms;
        quantiles([("0.5", latency.p50 / 1e3), ("0.99", latency.p99 / 1e3)])
    });
    families.gauge(
        "commit",
        "From the end of an epoch until the secondary was known to hold it",
        Some(Unit::Seconds),
        |status| {
            let commit = status.figures.commit_ms;
            quantiles([("0.5", commit.p50 / 1e3), ("0.99", commit.p99 / 1e3)])
        },
    );
    families.gauge("replica_running", "For how long it runs the VM, or holds it", Some(Unit::Seconds), |status| {
        vec![(None, status.running_s as f64)]
    });
    families.gauge("generation", "Generation that the replica acts in", None, |status| {
        vec![(None, status.generation as f64)]
    });
    families.gauge(
        "sync",
        "Bytes of the first sync's present phase; 0 if there is none",
        Some(Unit::Bytes),
        |status| {
            let (done, total) = status.sync.map_or((0, 0), |sync| (sync.done_bytes, sync.total_bytes));
            [("done", done), ("total", total)].map(|(part, bytes)| (Some(("part", part)), bytes as f64)).to_vec()
        },
    );
    for CounterOf { name, help, unit, value } in COUNTERS {
        families.counter(name, help, unit, |status| vec![(None, value(&status.figures))]);
    }
    families.counter("pages", "Pages sent, by encoding", None, |status| {
        let pages = status.figures.pages;
        [
            ("zero", pages.zero),
            ("unchanged", pages.unchanged),
            ("word-runs", pages.word_runs),
            ("delta", pages.delta),
            ("lz4", pages.lz4),
            ("raw", pages.raw),
        ]
        .map(|(encoding, count)| (Some(("encoding", encoding)), count))
        .to_vec()
    });
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// A value, with a label of its own if the figure has several.
type Sample<T> = (Option<(&'static str, &'static str)>, T);

fn quantiles(values: [(&'static str, f64); 2]) -> Vec<Sample<f64>> {
    values.map(|(quantile, value)| (Some(("quantile", quantile)), value)).to_vec()
}

/// Adds metrics to a registry.
struct Families<'a> {
    registry: &'a mut Registry,
    host: &'a str,
    replicas: &'a [ReplicaStatus],
}

impl Families<'_> {
    fn of_host(&mut self, is_store_reachable: bool) {
        let host = || ("host", self.host.to_owned());
        let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
        let (info, store) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
        info.get_or_create(&vec![host(), version]).set(1);
        store.get_or_create(&vec![host()]).set(is_store_reachable.into());
        self.registry.register("host", "The host's daemon and its version; always 1", info);
        self.registry.register("store_reachable", "1 if the cluster store can be written to, 0 if not", store);
    }

    /// What only the store knows: VMs that do not run, and whether protection is wanted.
    fn of_vms(&mut self, vms: &[VmView]) {
        let (running, secondary) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
        let mode = Family::<Labels, Gauge>::default();
        let (protection, since) =
            (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge<f64, AtomicU64>>::default());
        for vm in vms {
            let labels = |more: &[(&'static str, String)]| {
                let mut labels = vec![("host", self.host.to_owned()), ("vm", vm.name.clone())];
                labels.extend_from_slice(more);
                labels
            };
            running.get_or_create(&labels(&[])).set(vm.running.into());
            if let Some(host) = &vm.secondary {
                secondary.get_or_create(&labels(&[("secondary", host.clone())])).set(1);
            }
            for known in [FtMode::Mirror, FtMode::Lockstep] {
                let is_it = vm.ft.enabled && vm.ft.mode == known;
                mode.get_or_create(&labels(&[("mode", known.to_string())])).set(is_it.into());
            }
            for state in ProtectionState::ALL {
                let is_it = vm.protection.state == state;
                protection.get_or_create(&labels(&[("state", state.label().to_owned())])).set(is_it.into());
            }
            let reason = vm.protection.reason.map(|reason| reason.to_string()).unwrap_or_default();
            let state = vm.protection.state.label().to_owned();
            let labels = labels(&[("state", state), ("reason", reason)]);
            since.get_or_create(&labels).set(vm.protection.since_unix_ms as f64 / 1e3);
        }
        let registry = &mut *self.registry;
        registry.register("vm_running", "1 if the VM, which is at home on this host, runs", running);
        registry.register("vm_secondary", "The host of the VM's secondary; always 1", secondary);
        registry.register(
            "ft_mode",
            "1 for the FT mode that is wanted of the VM, 0 for the others and without FT",
            mode,
        );
        registry.register(
            "protection",
            "1 for the state of protection that the VM is in, 0 for the others",
            protection,
        );
        registry.register_with_unit(
            "protection_since",
            "Unix time since when the VM is in its state of protection, and why",
            Unit::Seconds,
            since,
        );
    }

    /// What is broken.
    fn of_faults(&mut self) {
        let since = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for status in self.replicas {
            for fault in &status.faults {
                let mut labels = self.labels(status, None);
                labels.push(("part", fault.part.clone()));
                since.get_or_create(&labels).set(fault.since_unix_ms as f64 / 1e3);
            }
        }
        let help = "Unix time since when a part of the replica is broken, such as a network end that is gone";
        self.registry.register_with_unit("replica_fault_since", help, Unit::Seconds, since);
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Fn(&ReplicaStatus) -> Vec<Sample<f64>>,
    ) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for status in self.replicas {
            for (label, value) in samples(status) {
                family.get_or_create(&self.labels(status, label)).set(value);
            }
        }
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, family),
            None => self.registry.register(name, help, family),
        }
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Fn(&ReplicaStatus) -> Vec<Sample<u64>>,
    ) {
        let family = Family::<Labels, Counter>::default();
        for status in self.replicas {
            for (label, value) in samples(status) {
                family.get_or_create(&self.labels(status, label)).inc_by(value);
            }
        }
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, family),
            None => self.registry.register(name, help, family),
        }
    }

    fn labels(&self, status: &ReplicaStatus, own: Option<(&'static str, &'static str)>) -> Labels {
        let mut labels =
            vec![("host", self.host.to_owned()), ("role", status.role.to_string()), ("vm", status.vm.clone())];
        labels.extend(own.map(|(name, value)| (name, value.to_owned())));
        labels
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use api::figures::LockstepFigures;
    use spec::EngineKind;

    use super::*;
    use api::figures::{CardFigures, DiskFigures, PauseFigures};
    use api::messages::FtWanted;
    use api::status::{Fault, Protection, Role};

    /// A host with the primary of a protected VM that has a fault.
    fn seen() -> Seen {
        let figures =
            Figures { pause_us: PauseFigures { p99: 1500.0, ..PauseFigures::default() }, ..Figures::default() };
        let log = LockstepFigures { lag_ms: 12.5, digests: 9, ..LockstepFigures::default() };
        let status = ReplicaStatus {
            vm: "redis".to_owned(),
            host: "a".to_owned(),
            pid: 1,
            role: Role::Primary,
            engine: EngineKind::Soft,
            mode: None,
            generation: 3,
            running_s: 0,
            protection: Protection::now(ProtectionState::Protected, None),
            peer: None,
            sync: None,
            listen: None,
            faults: vec![Fault { part: "network card 0".to_owned(), detail: String::new(), since_unix_ms: 2500 }],
            figures: Figures {
                sent_bytes: 7,
                triple_faults: 2,
                lockstep: Some(log),
                disks: vec![DiskFigures::default(), DiskFigures { written_bytes: 512, ..DiskFigures::default() }],
                cards: vec![CardFigures { received_frames: 5, ..CardFigures::default() }],
                ..figures
            },
        };
        let vm = VmView {
            name: "redis".to_owned(),
            running: true,
            host: "a".to_owned(),
            secondary: Some("b".to_owned()),
            cpus: 1,
            memory_bytes: 1,
            engine: None,
            generation: 3,
            ft: FtWanted { enabled: true, suspended: false, mode: FtMode::Lockstep },
            lag_ms_max: 100,
            suspicion_ms: None,
            protection: Protection { since_unix_ms: 1500, ..status.protection.clone() },
            ha: None,
            note: None,
            replicas: Vec::new(),
            disks: Vec::new(),
            cards: Vec::new(),
            spec: String::new(),
            next_spec: None,
            autostart: false,
            priority: Default::default(),
            operation: None,
        };
        Seen { host: "a".to_owned(), replicas: vec![status], vms: vec![vm], is_store_reachable: true }
    }

    #[test]
    fn every_figure_has_a_name_with_its_unit() {
        let text = text(&seen()).unwrap();
        for line in [
            r#"twinvm_checkpoint_pause_seconds{host="a",role="primary",vm="redis",quantile="0.99"} 0.0015"#,
            r#"twinvm_protection{host="a",vm="redis",state="protected"} 1"#,
            r#"twinvm_protection{host="a",vm="redis",state="need-secondary"} 0"#,
            r#"twinvm_protection_since_seconds{host="a",vm="redis",state="protected",reason=""} 1.5"#,
            r#"twinvm_vm_secondary{host="a",vm="redis",secondary="b"} 1"#,
            r#"twinvm_ft_mode{host="a",vm="redis",mode="lockstep"} 1"#,
            r#"twinvm_ft_mode{host="a",vm="redis",mode="mirror"} 0"#,
            r#"twinvm_lockstep_lag_seconds{host="a",role="primary",vm="redis"} 0.0125"#,
            r#"twinvm_lockstep_digests_total{host="a",role="primary",vm="redis"} 9"#,
            r#"twinvm_triple_faults_total{host="a",role="primary",vm="redis"} 2"#,
            r#"twinvm_replica_fault_since_seconds{host="a",role="primary",vm="redis",part="network card 0"} 2.5"#,
            r#"twinvm_disk_written_bytes_total{host="a",role="primary",vm="redis",disk="1"} 512"#,
            r#"twinvm_card_received_frames_total{host="a",role="primary",vm="redis",card="0"} 5"#,
            r#"twinvm_store_reachable{host="a"} 1"#,
            r#"twinvm_sent_bytes_total{host="a",role="primary",vm="redis"} 7"#,
            r#"twinvm_pages_total{host="a",role="primary",vm="redis",encoding="delta"} 0"#,
            r#"twinvm_generation{host="a",role="primary",vm="redis"} 3.0"#,
            "# UNIT twinvm_epoch_length_seconds seconds",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }
    /// An alarm on a metric that is not served is never raised.
    #[test]
    fn what_alarms_and_dashboards_are_made_of_is_served() {
        let text = text(&seen()).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/monitoring");
        for file in ["twinvm.rules.yml", "twinvm.rules.test.yml", "twinvm.grafana.json"] {
            let used = std::fs::read_to_string(folder.join(file)).unwrap();
            let words = used.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: Vec<&str> = words.filter(|word| word.starts_with("twinvm_")).collect();
            assert!(names.len() > 10, "{file}");
            for name in names {
                assert!(text.contains(&format!("\n{name}{{")), "{file}: {name} is not in\n{text}");
            }
        }
    }
}
