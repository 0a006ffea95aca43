//! What the demo found, for people and programs.

use anyhow::Result;
use serde::Serialize;
use spec::{EngineKind, FtMode};
use terminal::output::{print_line, print_table, table};

use super::failover::Failover;
use crate::load::{Broken, Outcome};

/// What was shown.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Subject {
    /// How the VM was protected.
    pub mode: FtMode,
    /// What executed its vCPUs.
    pub engine: EngineKind,
}

/// The result of `twinvm demo`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Kills that were to be survived.
    kills: u32,
    /// Kills after which the client was served again on its connection.
    survived: u32,
    /// Acknowledged increments that were undone.
    lost: u64,
    /// Connections that broke: the client has one.
    broken: u32,
    /// The longest gap between two replies around each kill.
    blackout_ms: Blackout,
    /// Increments that nobody asked for.
    repeated: u64,
    /// Increments that were acknowledged.
    acknowledged: u64,
    /// Replies per second over the whole time, blackouts and first syncs included.
    requests_per_s: f64,
    /// From a request to its reply.
    latency_ms: Latency,
    /// Each kill.
    failovers: Vec<Failover>,
    #[serde(flatten)]
    subject: Subject,
    /// What else went wrong.
    problem: Option<String>,
}

/// Blackouts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blackout {
    /// Half of them were not longer.
    pub p50: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
    /// In the order of the kills.
    pub each: Vec<f64>,
}

impl Blackout {
    /// Of some failovers.
    pub fn of(failovers: &[Failover]) -> Self {
        let each: Vec<f64> = failovers.iter().map(|failover| failover.blackout_ms).collect();
        let mut sorted = each.clone();
        sorted.sort_by(f64::total_cmp);
        let p50 = sorted.get(sorted.len().saturating_sub(1) / 2).copied();
        Self { p50, max: sorted.last().copied(), each }
    }
}

/// Latencies.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Report {
    /// Puts it together.
    pub fn new(
        subject: Subject,
        kills: u32,
        failovers: Vec<Failover>,
        outcome: Result<Outcome, Broken>,
        mut problem: Option<String>,
    ) -> Self {
        let survived = failovers.iter().filter(|failover| failover.survived).count();
        let mut report = Self {
            kills,
            survived: u32::try_from(survived).unwrap_or(u32::MAX),
            lost: 0,
            broken: 0,
            blackout_ms: Blackout::of(&failovers),
            repeated: 0,
            acknowledged: 0,
            requests_per_s: 0.0,
            latency_ms: Latency { p50: 0.0, p99: 0.0, max: 0.0 },
            failovers,
            subject,
            problem: None,
        };
        match outcome {
            Ok(outcome) => {
                report.lost = outcome.lost;
                report.repeated = outcome.repeated;
                report.broken = outcome.broken.is_some().into();
                report.acknowledged = outcome.acknowledged;
                report.requests_per_s = outcome.requests_per_s();
                report.latency_ms = Latency {
                    p50: outcome.latencies.quantile_ms(0.5),
                    p99: outcome.latencies.quantile_ms(0.99),
                    max: outcome.latencies.max().as_secs_f64() * 1e3,
                };
                if let Some(broken) = outcome.broken {
                    problem.get_or_insert(broken);
                }
            }
            Err(error) => {
                report.broken = 1;
                problem.get_or_insert(format!("the counter cannot be read in the end: {error}"));
            }
        }
        report.problem = problem;
        report
    }

    /// Whether every kill was survived, nothing was lost and nothing broke.
    pub fn is_good(&self) -> bool {
        self.survived == self.kills && (self.lost, self.repeated, self.broken) == (0, 0, 0) && self.problem.is_none()
    }

    /// Prints it for people.
    pub fn print(&self) -> Result<()> {
        let mut rows = table(&["KILL", "HOST", "TOOK OVER", "BLACKOUT", "PROTECTED AGAIN"]);
        for (number, failover) in (1_u32..).zip(&self.failovers) {
            rows.add_row([
                number.to_string(),
                failover.from.clone(),
                failover.to.clone().unwrap_or_else(|| "-".to_owned()),
                if failover.survived { format!("{:.1} ms", failover.blackout_ms) } else { "not survived".to_owned() },
                failover.protected_again_s.map_or_else(|| "-".to_owned(), |seconds| format!("after {seconds:.1} s")),
            ]);
        }
        print_line(&format!("\n{}\n", rows.trim_fmt()))?;
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} ms"));
        let mut rows = table(&["RESULT", ""]);
        rows.add_rows([
            ["mode".to_owned(), self.subject.mode.to_string()],
            ["kills survived".to_owned(), format!("{} of {}", self.survived, self.kills)],
            [
                "blackout, p50 and longest".to_owned(),
                format!("{}, {}", ms(self.blackout_ms.p50), ms(self.blackout_ms.max)),
            ],
            ["acknowledged increments".to_owned(), self.acknowledged.to_string()],
            ["of them lost".to_owned(), self.lost.to_string()],
            ["increments made twice".to_owned(), self.repeated.to_string()],
            ["connections broken".to_owned(), format!("{} of 1", self.broken)],
            ["requests per second".to_owned(), format!("{:.0}", self.requests_per_s)],
            [
                "latency, p50 and p99".to_owned(),
                format!("{:.2} ms, {:.2} ms", self.latency_ms.p50, self.latency_ms.p99),
            ],
        ]);
        print_table(&rows)?;
        match &self.problem {
            Some(problem) => print_line(&format!("\n{problem}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Histogram;

    const SUBJECT: Subject = Subject { mode: FtMode::Lockstep, engine: EngineKind::Soft };

    fn failover(blackout_ms: f64, survived: bool) -> Failover {
        Failover {
            from: "a".to_owned(),
            to: Some("b".to_owned()),
            survived,
            blackout_ms,
            takeover: None,
            protected_again_s: Some(1.0),
        }
    }

    fn outcome() -> Outcome {
        Outcome {
            acknowledged: 10,
            unanswered: 0,
            lost: 0,
            repeated: 0,
            broken: None,
            duration: Duration::from_secs(2),
            latencies: Histogram::default(),
        }
    }

    fn report(failovers: &[Failover], outcome: Result<Outcome, Broken>, problem: Option<&str>) -> Report {
        Report::new(SUBJECT, 2, failovers.to_vec(), outcome, problem.map(str::to_owned))
    }

    #[test]
    fn the_report_has_its_keys() {
        let report = report(&[failover(30.0, true), failover(10.0, true)], Ok(outcome()), None);
        let json = serde_json::to_value(&report).unwrap();
        for (key, value) in [("kills", 2), ("survived", 2), ("lost", 0), ("broken", 0), ("acknowledged", 10)] {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(json["blackout_ms"], serde_json::json!({"p50": 10.0, "max": 30.0, "each": [30.0, 10.0]}));
        assert_eq!((json["requests_per_s"].as_f64(), json["mode"].as_str()), (Some(5.0), Some("lockstep")));
        assert!(report.is_good());
    }

    #[test]
    fn anything_lost_or_broken_is_not_good() {
        let good = [failover(1.0, true), failover(1.0, true)];
        assert!(!report(&good[..1], Ok(outcome()), None).is_good(), "a kill is missing");
        assert!(!report(&[failover(1.0, true), failover(1.0, false)], Ok(outcome()), None).is_good());
        assert!(!report(&good, Ok(Outcome { lost: 1, ..outcome() }), None).is_good());
        assert!(!report(&good, Ok(Outcome { repeated: 1, ..outcome() }), None).is_good());
        let broken = report(&good, Ok(Outcome { broken: Some("closed".to_owned()), ..outcome() }), None);
        assert!(!broken.is_good() && broken.broken == 1 && broken.problem.as_deref() == Some("closed"));
        assert!(!report(&good, Err(Broken::Closed), None).is_good());
        assert!(!report(&good, Ok(outcome()), Some("no protection")).is_good());
    }

    #[test]
    fn no_kill_has_no_blackout() {
        assert_eq!(Blackout::of(&[]), Blackout { p50: None, max: None, each: vec![] });
        let odd: Vec<Failover> = [5.0, 1.0, 3.0].map(|ms| failover(ms, true)).to_vec();
        assert_eq!(Blackout::of(&odd).p50, Some(3.0));
    }
}
