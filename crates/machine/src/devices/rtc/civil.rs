//! Dates and times of day in UTC.

use serde::{Deserialize, Serialize};

/// A point in time by the Gregorian calendar. The day may be one that the month does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CivilTime {
    /// 0 to 59.
    pub second: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 to 12.
    pub month: u8,
    /// 0 to 9999.
    pub year: u16,
}

const DAY_SECONDS: i64 = 86_400;
/// The last second of the year 9999.
const UNIX_SECONDS_MAX: i64 = 253_402_300_799;

impl CivilTime {
    /// The time so many seconds after the Unix epoch; what is out of range becomes the nearest that is not.
    pub(super) fn from_unix_seconds(seconds: i64) -> Self {
        let seconds = seconds.clamp(0, UNIX_SECONDS_MAX);
        let (days, of_day) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
        // Years that begin in March have the leap day at their end; 400 of them have 146,097 days. (Howard Hinnant,
        // "chrono-Compatible Low-Level Date Algorithms", civil_from_days.)
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self {
            second: (of_day % 60) as u8,
            minute: (of_day / 60 % 60) as u8,
            hour: (of_day / 3_600) as u8,
            day: day as u8,
            month: month as u8,
            year: year as u16,
        }
    }

    /// What is out of range becomes the nearest that is not.
    pub(super) fn within_registers(self) -> Self {
        Self {
            second: self.second.min(59),
            minute: self.minute.min(59),
            hour: self.hour.min(23),
            day: self.day.clamp(1, 31),
            month: self.month.clamp(1, 12),
            year: self.year.min(9999),
        }
    }

    /// Seconds after the Unix epoch; negative before. Days beyond the end of a month run into the next.
    pub(super) fn unix_seconds(&self) -> i64 {
        let time = (i64::from(self.hour) * 60 + i64::from(self.minute)) * 60 + i64::from(self.second);
        self.days() * DAY_SECONDS + time
    }

    /// 0 for Sunday.
    pub(super) fn weekday(&self) -> u8 {
        // The epoch was a Thursday.
        (self.days() + 4).rem_euclid(7) as u8
    }

    /// Days after 1970-01-01 (Hinnant's days_from_civil).
    fn days(&self) -> i64 {
        let month = i64::from(self.month);
        let year = i64::from(self.year) - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month_from_march = if month > 2 { month - 3 } else { month + 9 };
        let of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, (year, month, day), weekday) in [
            (0, (1970, 1, 1), 4),
            (951_782_400, (2000, 2, 29), 2),
            (1_709_164_800, (2024, 2, 29), 4),
            (1_709_251_200, (2024, 3, 1), 5),
            (4_107_542_400, (2100, 3, 1), 1),
            (UNIX_SECONDS_MAX - 86_399, (9999, 12, 31), 5),
        ] {
            let time = CivilTime::from_unix_seconds(seconds);
            assert_eq!((time.year, time.month, time.day, time.weekday()), (year, month, day, weekday));
        }
    }

    #[test]
    fn seconds_survive_the_round_trip() {
        for seconds in (0..UNIX_SECONDS_MAX).step_by(123_456_789) {
            assert_eq!(CivilTime::from_unix_seconds(seconds).unix_seconds(), seconds);
        }
        for seconds in [i64::MIN, i64::MAX] {
            CivilTime::from_unix_seconds(seconds).unix_seconds();
        }
    }
}
