//! What Prometheus reads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::HUNG;
use crate::world::{VM, World};

/// What a host's metrics say.
pub fn scrape(world: &World, host: &str) -> String {
    let daemon = std::fs::read_to_string(world.path(host).join("daemon.json")).unwrap();
    let daemon: Value = serde_json::from_str(&daemon).unwrap();
    let mut connection = TcpStream::connect(daemon["metrics"].as_str().unwrap()).unwrap();
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/openmetrics-text"), "{answer}");
    answer
}

/// What a host's metrics say once `part` is in it.
pub fn scrape_until(world: &World, host: &str, part: &str) -> String {
    let deadline = Instant::now() + HUNG;
    loop {
        let text = scrape(world, host);
        if text.contains(part) {
            return text;
        }
        assert!(Instant::now() < deadline, "{part} does not come: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that `twinvm top` shows of a protected VM, on the hosts of its replicas.
pub fn assert_every_figure_is_there(world: &World, primary: &str, secondary: &str) {
    let text = scrape(world, primary);
    let replica = format!("{{host=\"{primary}\",role=\"primary\",vm=\"{VM}\"");
    let vm = format!("{{host=\"{primary}\",vm=\"{VM}\"");
    for (name, unit, kind, sample) in [
        ("epoch", "", "gauge", format!("{replica}}}")),
        ("epochs_per_second", "", "gauge", format!("{replica}}}")),
        ("epoch_length_seconds", "seconds", "gauge", format!("{replica}}}")),
        ("epoch_dirty_pages", "", "gauge", format!("{replica}}}")),
        ("checkpoint_pause_seconds", "seconds", "gauge", format!("{replica},quantile=\"0.5\"}}")),
        ("checkpoint_pause_seconds", "seconds", "gauge", format!("{replica},quantile=\"0.99\"}}")),
        ("checkpoint_pause_last_seconds", "seconds", "gauge", format!("{replica}}}")),
        ("dirty_bytes", "bytes", "counter", format!("_total{replica}}}")),
        ("sent_bytes", "bytes", "counter", format!("_total{replica}}}")),
        ("pages", "", "counter", format!("_total{replica},encoding=\"delta\"}}")),
        ("output_delay_seconds", "seconds", "gauge", format!("{replica},quantile=\"0.5\"}}")),
        ("output_delay_seconds", "seconds", "gauge", format!("{replica},quantile=\"0.99\"}}")),
        ("commit_seconds", "seconds", "gauge", format!("{replica},quantile=\"0.5\"}}")),
        ("lag_epochs", "", "gauge", format!("{replica}}}")),
        ("output_waiting_frames", "", "gauge", format!("{replica}}}")),
        ("output_waiting_bytes", "bytes", "gauge", format!("{replica}}}")),
        ("replica_resident_memory_bytes", "bytes", "gauge", format!("{replica}}}")),
        ("failovers", "", "counter", format!("_total{replica}}}")),
        ("takeover_detection_seconds", "seconds", "gauge", format!("{replica}}}")),
        ("takeover_arbitration_seconds", "seconds", "gauge", format!("{replica}}}")),
        ("takeover_restore_seconds", "seconds", "gauge", format!("{replica}}}")),
        ("generation", "", "gauge", format!("{replica}}}")),
        ("sync_bytes", "bytes", "gauge", format!("{replica},part=\"total\"}} 0")),
        ("lockstep_lag_seconds", "seconds", "gauge", format!("{replica}}}")),
        ("lockstep_lag_instructions", "", "gauge", format!("{replica}}}")),
        ("lockstep_log_bytes", "bytes", "counter", format!("_total{replica}}}")),
        ("lockstep_digests", "", "counter", format!("_total{replica}}}")),
        ("throttled", "", "counter", format!("_total{replica}}}")),
        ("disk_read_bytes", "bytes", "counter", format!("_total{replica},disk=\"0\"}}")),
        ("disk_errors", "", "counter", format!("_total{replica},disk=\"0\"}} 0")),
        ("card_sent_frames", "", "counter", format!("_total{replica},card=\"0\"}}")),
        ("ft_mode", "", "gauge", format!("{vm},mode=\"mirror\"}} 1")),
        ("vm_running", "", "gauge", format!("{vm}}} 1")),
        ("vm_secondary", "", "gauge", format!("{vm},secondary=\"{secondary}\"}} 1")),
        ("protection", "", "gauge", format!("{vm},state=\"protected\"}} 1")),
        ("protection", "", "gauge", format!("{vm},state=\"starting\"}} 0")),
        ("protection_since_seconds", "seconds", "gauge", format!("{vm},state=\"protected\",reason=\"\"}}")),
        ("store_reachable", "", "gauge", format!("{{host=\"{primary}\"}} 1")),
    ] {
        let name = format!("twinvm_{name}");
        let has = |start: &str| text.lines().any(|line| line.starts_with(start));
        assert!(has(&format!("# HELP {name} ")), "no HELP of {name}:\n{text}");
        assert!(has(&format!("# TYPE {name} {kind}")), "{name} is no {kind}:\n{text}");
        assert!(unit.is_empty() || has(&format!("# UNIT {name} {unit}")), "no UNIT of {name}:\n{text}");
        assert!(has(&format!("{name}{sample}")), "no {name}{sample}:\n{text}");
    }
    for did in ["disk_read_bytes_total", "card_received_frames_total", "card_sent_bytes_total"] {
        let value = text.lines().find(|line| line.starts_with(&format!("twinvm_{did}{replica}"))).expect(did);
        assert!(!value.ends_with(" 0"), "a guest that serves clients did nothing: {value}");
    }
    assert!(text.trim_end().ends_with("# EOF"));
    let text = scrape(world, secondary);
    let replica = format!("twinvm_epoch{{host=\"{secondary}\",role=\"secondary\",vm=\"{VM}\"}}");
    assert!(text.contains(&replica), "{text}");
    assert!(!text.contains("twinvm_protection{"), "the VM is not at home here:\n{text}");
}
