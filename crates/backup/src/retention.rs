//! Which recovery points are kept.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::point::{PointId, RecoveryPoint};

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The first of January 1970 was a Thursday.
const MONDAY_DAYS: u64 = 3;

/// How many points of each VM are kept. A point is kept if any of these keeps it. Of each hour, day, week (from Monday) and month, in UTC, it is the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The newest of all.
    pub last: u32,
    /// Of so many hours that have one.
    pub hourly: u32,
    /// Of so many days.
    pub daily: u32,
    /// Of so many weeks.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
}

/// The number of the hour, day, week or month that a time in ms since 1970 is in.
type PeriodOf = fn(u64) -> u64;

impl Retention {
    /// Whether it keeps nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those of the points of one VM that are not kept, the oldest first.
    pub fn forgets(&self, points: &[RecoveryPoint]) -> Vec<PointId> {
        let mut newest: Vec<&RecoveryPoint> = points.iter().collect();
        newest.sort_by(|a, b| (b.taken_unix_ms, &b.id).cmp(&(a.taken_unix_ms, &a.id)));
        let mut kept: HashSet<&PointId> = newest.iter().take(self.last as usize).map(|point| &point.id).collect();
        let periods: [(u32, PeriodOf); 4] = [
            (self.hourly, |ms| ms / HOUR_MS),
            (self.daily, |ms| ms / DAY_MS),
            (self.weekly, |ms| (ms / DAY_MS + MONDAY_DAYS) / 7),
            (self.monthly, |ms| month(ms / DAY_MS)),
        ];
        for (count, period) in periods {
            let (mut before, mut left) = (None, count);
            for point in &newest {
                let of = Some(period(point.taken_unix_ms));
                if left > 0 && before != of {
                    kept.insert(&point.id);
                    left -= 1;
                    before = of;
                }
            }
        }
        let forgotten = newest.iter().rev().filter(|point| !kept.contains(&point.id));
        forgotten.map(|point| point.id.clone()).collect()
    }
}

/// The month of a day, both counted from January 1970: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`, with years that
/// begin in March.
fn month(days: u64) -> u64 {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    // March is the third month.
    ((era * 400 + year) * 12 + month + 2).saturating_sub(1970 * 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: u64, hour: u64) -> RecoveryPoint {
        RecoveryPoint {
            id: PointId::random().unwrap(),
            vm: "shop".to_owned(),
            host: "a".to_owned(),
            taken_unix_ms: days * DAY_MS + hour * HOUR_MS,
            finished_unix_ms: 0,
            spec: String::new(),
            volumes: Vec::new(),
            data_bytes: 0,
            added_bytes: 0,
            packs: Vec::new(),
        }
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        // 1970-01-01, 1970-01-31, 1970-02-01, 2000-02-29, 2000-03-01, 2024-12-31, 2025-01-01
        for (day, expected) in [(0, 0), (30, 0), (31, 1), (11_016, 361), (11_017, 362), (20_088, 659), (20_089, 660)] {
            assert_eq!(month(day), expected, "{day}");
        }
    }

    #[test]
    fn the_newest_of_each_period_is_kept_and_nothing_twice() {
        // Two a day, for a hundred days.
        let points: Vec<_> = (0..100).flat_map(|day| [at(20_000 + day, 3), at(20_000 + day, 15)]).collect();
        let kept = |retention: Retention| {
            let forgotten = retention.forgets(&points);
            let kept: Vec<usize> = (0..200).filter(|&n| !forgotten.contains(&points[n].id)).collect();
            kept
        };
        assert_eq!(kept(Retention { last: 3, ..Retention::default() }), [197, 198, 199]);
        assert_eq!(kept(Retention { hourly: 3, ..Retention::default() }), [197, 198, 199]);
        assert_eq!(kept(Retention { daily: 3, ..Retention::default() }), [195, 197, 199]);
        // The last day is the eleventh of January 2025, a Saturday: the week before ends with the fifth.
        assert_eq!(kept(Retention { weekly: 2, ..Retention::default() }), [187, 199]);
        // October to January.
        assert_eq!(kept(Retention { monthly: 9, ..Retention::default() }).len(), 4);
        assert_eq!(kept(Retention { last: 1, daily: 2, ..Retention::default() }), [197, 199]);
        assert!(Retention::default().is_empty() && Retention::default().forgets(&points).len() == 200);
    }
}
