//! [`HostError`]: why the daemon does not do something.

use std::fmt;

use anyhow::anyhow;
use api::Problem;
use api::client::Target;
use cluster::records::ClusterError;
use terminal::error_text::error_text;

/// What kind of reason there is not to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was asked makes no sense.
    Invalid,
    /// Whoever asks is not entitled to it.
    NotEntitled,
    /// What was asked about is not there.
    NotFound,
    /// It cannot be done in this state.
    Refused,
    /// Another host or the cluster store does not answer.
    Unreachable,
    /// Something unforeseen.
    Unforeseen,
}

/// Why the daemon does not do something, in words for whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// The kind of reason.
    pub kind: Kind,
    /// The reason, and what to do about it.
    pub problem: Problem,
    /// The host that does it, if that is known to be another one: whoever asked is sent on.
    pub home: Option<Target>,
}

impl HostError {
    fn new(kind: Kind, error: impl Into<String>) -> Self {
        Self { kind, problem: Problem { error: error.into(), hint: None }, home: None }
    }

    /// What was asked makes no sense.
    pub fn invalid(error: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, error)
    }

    /// Whoever asks is not entitled to it.
    pub fn not_entitled(error: impl Into<String>) -> Self {
        Self::new(Kind::NotEntitled, error)
    }

    /// What was asked about is not there.
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, error)
    }

    /// It cannot be done in this state.
    pub fn refused(error: impl Into<String>) -> Self {
        Self::new(Kind::Refused, error)
    }

    /// Another host or the cluster store does not answer.
    pub fn unreachable(error: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, error)
    }

    /// What to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    /// The host that does it.
    pub fn at(mut self, home: Target) -> Self {
        self.home = Some(home);
        self
    }
}

impl std::error::Error for HostError {}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

/// Everything unforeseen is the server's fault; what was foreseen keeps its kind through `?` and `context`.
impl From<anyhow::Error> for HostError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast_ref::<Self>() {
            Some(known) => {
                Self { problem: Problem { error: error_text(&error), hint: None }, ..known.clone() }.keep_hint_of(known)
            }
            None => Self::new(Kind::Unforeseen, error_text(&error)),
        }
    }
}

impl HostError {
    /// The message of `self` may end in that of `known` with its hint: the hint goes back to its own field.
    fn keep_hint_of(mut self, known: &Self) -> Self {
        if let Some(hint) = &known.problem.hint {
            let ending = format!("; {hint}");
            if let Some(error) = self.problem.error.strip_suffix(&ending) {
                self.problem.error = error.to_owned();
            }
            self.problem.hint = Some(hint.clone());
        }
        self
    }
}

impl From<ClusterError> for HostError {
    fn from(error: ClusterError) -> Self {
        let message = error.to_string();
        match error {
            ClusterError::Store(_) => Self::unreachable(message)
                .hint("VMs go on, but nothing can be changed and nobody takes over until the store answers again"),
            ClusterError::Name(_) => Self::invalid(message),
            ClusterError::NoVm(_) => Self::not_found(message).hint("see `twinvm vm list`"),
            ClusterError::NoHost(_) => Self::not_found(message).hint("see `twinvm host list`"),
            ClusterError::NoDatastore(_) => Self::not_found(message).hint("see `twinvm datastore list`"),
            ClusterError::DatastoreExists(_) => Self::refused(message).hint("choose another name"),
            ClusterError::DatastoreInUse { .. } => Self::refused(message),
            ClusterError::VmExists(_) => Self::refused(message).hint("choose another name"),
            ClusterError::NoToken | ClusterError::TokenUsed => Self::not_entitled(message),
            ClusterError::HostInUse { .. }
            | ClusterError::Contended(_)
            | ClusterError::OtherInstance(_)
            | ClusterError::LeaseEnded(_)
            | ClusterError::ClusterExists => Self::refused(message),
            ClusterError::Unreadable { .. } => anyhow!(message).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context;
    use storage::disk::{DiskImage, DiskOptions};

    use super::*;

    #[test]
    fn a_foreseen_error_keeps_its_kind_and_hint_under_context() {
        let error = Err::<(), _>(HostError::not_found("no VM named x").hint("see `twinvm vm list`")).context("start");
        let error = HostError::from(error.unwrap_err());
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.problem.error, "start: no VM named x");
        assert_eq!(error.problem.hint.as_deref(), Some("see `twinvm vm list`"));
        let other = HostError::from(anyhow::anyhow!("disk on fire"));
        assert_eq!((other.kind, other.to_string().as_str()), (Kind::Unforeseen, "disk on fire"));
    }

    /// Errors of disks, of network ends and of images end in the words of their cause, and so did what a host said of them, twice.
    #[test]
    fn row_23_a_host_says_the_cause_of_an_error_once() {
        let opened = DiskImage::open(Path::new("/no/disk"), DiskOptions::default()).map(drop);
        let error = HostError::from(opened.context("disk 0").unwrap_err());
        assert_eq!(error.problem.error, "disk 0: /no/disk: No such file or directory (os error 2)");
    }
}
