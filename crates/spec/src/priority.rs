//! [`Priority`]: which of several VMs comes first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which of several VMs comes first where not all can at once. The order of the values is that of the VMs: the highest comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Before all others.
    Highest,
    /// Before most.
    High,
    /// As most.
    #[default]
    Medium,
    /// After most.
    Low,
    /// After all others.
    Lowest,
}

impl Priority {
    /// All of them, the highest first.
    pub const ALL: [Self; 5] = [Self::Highest, Self::High, Self::Medium, Self::Low, Self::Lowest];

    /// As in a spec.
    pub fn label(self) -> &'static str {
        match self {
            Self::Highest => "highest",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Lowest => "lowest",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// Not the name of a priority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no priority {0:?}: it is highest, high, medium, low or lowest")]
pub struct UnknownPriority(String);

impl FromStr for Priority {
    type Err = UnknownPriority;

    fn from_str(name: &str) -> Result<Self, UnknownPriority> {
        let found = Self::ALL.into_iter().find(|priority| priority.label() == name);
        found.ok_or_else(|| UnknownPriority(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_read_as_they_are_written_and_ordered_as_they_are_called() {
        for priority in Priority::ALL {
            assert_eq!(priority.to_string().parse::<Priority>().unwrap(), priority);
            assert_eq!(serde_json::to_value(priority).unwrap(), priority.label());
        }
        assert!(Priority::ALL.is_sorted() && Priority::default() == Priority::Medium);
        assert!("urgent".parse::<Priority>().unwrap_err().to_string().contains("highest"));
    }
}
