//! [`SuspicionMs`]: after how much silence a replica takes the other one for lost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The bounds of the silence after which a replica takes the other one for lost, in ms: the most is 20 to 10,000, the least 10 to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Bounds", into = "Bounds")]
pub struct SuspicionMs {
    min: u32,
    max: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    min: u32,
    max: u32,
}

/// Not bounds of a suspicion time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a suspicion time is two numbers of ms such as 50-100, the first 10 or more, the second 20 to 10000; one number makes it fixed"
)]
pub struct NoSuspicionMs;

impl SuspicionMs {
    /// At least `min`, or three quarters of `max` if that is not said, and at most `max`.
    ///
    /// # Errors
    /// [`NoSuspicionMs`].
    pub fn between(min: Option<u32>, max: u32) -> Result<Self, NoSuspicionMs> {
        let min = min.unwrap_or(max.saturating_mul(3) / 4);
        if (20..=10_000).contains(&max) && (10..=max).contains(&min) {
            Ok(Self { min, max })
        } else {
            Err(NoSuspicionMs)
        }
    }

    /// The least.
    pub fn min(self) -> u32 {
        self.min
    }

    /// The most.
    pub fn max(self) -> u32 {
        self.max
    }
}

impl TryFrom<Bounds> for SuspicionMs {
    type Error = NoSuspicionMs;

    fn try_from(bounds: Bounds) -> Result<Self, NoSuspicionMs> {
        Self::between(Some(bounds.min), bounds.max)
    }
}

impl From<SuspicionMs> for Bounds {
    fn from(SuspicionMs { min, max }: SuspicionMs) -> Self {
        Self { min, max }
    }
}

impl FromStr for SuspicionMs {
    type Err = NoSuspicionMs;

    fn from_str(text: &str) -> Result<Self, NoSuspicionMs> {
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| NoSuspicionMs);
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        Self::between(Some(number(min)?), number(max)?)
    }
}

impl fmt::Display for SuspicionMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max } = self;
        if min == max { write!(f, "{max} ms") } else { write!(f, "{min} to {max} ms") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_and_refused_wherever_they_come_from() {
        for (text, shown) in [("50-100", "50 to 100 ms"), ("300", "300 ms"), ("10 - 20", "10 to 20 ms")] {
            assert_eq!(text.parse::<SuspicionMs>().unwrap().to_string(), shown);
        }
        for text in ["", "9-100", "10-19", "100-50", "50-10001", "50-", "-50", "a-b", "50-100-200"] {
            assert_eq!(text.parse::<SuspicionMs>(), Err(NoSuspicionMs), "{text}");
        }
        assert_eq!(SuspicionMs::between(None, 100).map(|bounds| bounds.min()), Ok(75));
        assert!(serde_json::from_str::<SuspicionMs>(r#"{"min":5,"max":100}"#).is_err());
        let bounds = SuspicionMs::between(Some(20), 40).unwrap();
        assert_eq!(serde_json::from_str::<SuspicionMs>(&serde_json::to_string(&bounds).unwrap()).unwrap(), bounds);
    }
}
