//! [`Peer`]: who is at the other end of a connection.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What follows an operator's name in a certificate. The top-level domain is reserved (RFC 2606), so that no host can have such a name.
pub(super) const OPERATORS: &str = ".operator.twinvm.invalid";

/// Whom a certificate names. What it entitles to is for those who check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host of the cluster.
    Host(String),
    /// Somebody who administers the cluster.
    Operator(String),
}

impl Peer {
    /// Whom a certificate names that an authority was found to vouch for; nobody if it has no name, or more than one.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut names = certificate.valid_dns_names();
        let name = names.next()?;
        names.next().is_none().then(|| Self::named(name))
    }

    pub(super) fn named(name: &str) -> Self {
        let end = name.len().saturating_sub(OPERATORS.len());
        match name.split_at_checked(end) {
            Some((operator, suffix)) if suffix.eq_ignore_ascii_case(OPERATORS) => Self::Operator(operator.to_owned()),
            _ => Self::Host(name.to_owned()),
        }
    }

    /// The host's name, if it is one.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Host(host) => Some(host),
            Self::Operator(_) => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host {name}"),
            Self::Operator(name) => write!(f, "operator {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_below_the_operators_domain_is_an_operators() {
        assert_eq!(Peer::named("alice.operator.twinvm.invalid"), Peer::Operator("alice".to_owned()));
        assert_eq!(Peer::named("alice.OPERATOR.twinvm.invalid"), Peer::Operator("alice".to_owned()));
        for host in ["a", "operator", "alice.operator.twinvm.invalid.example", "operator.twinvm.invalid", "ä"] {
            assert_eq!(Peer::named(host), Peer::Host(host.to_owned()));
        }
    }
}
