//! The cluster's authority, which says who its hosts and its operators are; and those of single sessions.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::DnsName;

use super::error::IdentityError;
use super::keys::{AUTHORITY, AUTHORITY_KEY, HOST_KEY, NewFiles, PemKeys, invalid, read, read_private};
use super::peer::{OPERATORS, Peer};

/// What a certificate entitles to.
#[derive(Clone, Copy)]
pub(super) enum Usage {
    /// To be connected to, and to connect.
    Host,
    /// To connect.
    Operator,
}

/// Makes an authority in a folder, which is made if need be: `ca.pem` and `ca.key` (ECDSA P-256).
///
/// # Errors
/// If there is one already, or the files cannot be written. Then nothing is left behind.
pub fn create_authority(folder: &Path) -> Result<(), IdentityError> {
    let (certificate, key) = new_authority("twinvm cluster")?;
    let mut files = NewFiles::begin(folder)?;
    files.write(AUTHORITY_KEY, &key.serialize_pem(), 0o600)?;
    files.write(AUTHORITY, &certificate, 0o644)?;
    files.keep();
    Ok(())
}

/// Has an authority make the keys of a host, in a folder that is made if need be: `ca.pem`, `host.pem` and `host.key`.
///
/// # Errors
/// If `host` is no name in the sense of DNS (RFC 1123), the authority's files cannot be used, or there are keys already. Then
/// nothing is left behind.
pub fn issue(authority: &Path, host: &str, folder: &Path) -> Result<(), IdentityError> {
    check_host(host)?;
    let keys = sign(authority, host, host, Usage::Host)?;
    let mut files = NewFiles::begin(folder)?;
    for (name, text) in keys.files() {
        files.write(name, text, if name == HOST_KEY { 0o600 } else { 0o644 })?;
    }
    files.keep();
    Ok(())
}

/// Refuses a name that a host cannot have. Hosts and operators differ by their names only.
pub(super) fn check_host(host: &str) -> Result<(), IdentityError> {
    if DnsName::try_from(host).is_err() || Peer::named(host) != Peer::Host(host.to_owned()) {
        return Err(IdentityError::Name(host.to_owned()));
    }
    Ok(())
}

/// Has an authority make the keys of an operator, as the text of one file ([`PemKeys::to_text`]).
///
/// # Errors
/// If `operator` is no label of a DNS name (RFC 1123), or the authority's files cannot be used.
pub fn issue_operator(authority: &Path, operator: &str) -> Result<PemKeys, IdentityError> {
    let name = format!("{operator}{OPERATORS}");
    if operator.contains('.') || DnsName::try_from(name.as_str()).is_err() {
        return Err(IdentityError::Name(operator.to_owned()));
    }
    sign(authority, operator, &name, Usage::Operator)
}

/// Makes keys for one session between two hosts, under an authority of its own whose key nobody keeps: whoever has one of these keys can
/// be that host in this session, and nothing else.
///
/// # Errors
/// If a host's name is none in the sense of DNS, or the system gives no random numbers.
pub fn session_keys(hosts: [&str; 2]) -> Result<[PemKeys; 2], IdentityError> {
    let (authority, key) = new_authority("twinvm session")?;
    let issuer = Issuer::from_ca_cert_pem(&authority, key)?;
    let [first, second] = hosts.map(|host| sign_by(&issuer, &authority, host, host, Usage::Host));
    Ok([first?, second?])
}

/// A new authority's certificate, and its key.
fn new_authority(name: &str) -> Result<(String, KeyPair), IdentityError> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    // Whom it names, and no further authorities.
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok((parameters.self_signed(&key)?.pem(), key))
}

/// Keys that the authority in a folder vouches for.
fn sign(authority: &Path, common_name: &str, dns_name: &str, usage: Usage) -> Result<PemKeys, IdentityError> {
    let (certificate, issuer) = issuer(authority)?;
    sign_by(&issuer, &certificate, common_name, dns_name, usage)
}

/// The authority in a folder: its certificate as PEM, and what signs with its key.
pub(super) fn issuer(authority: &Path) -> Result<(String, Issuer<'static, KeyPair>), IdentityError> {
    let (certificate_path, key_path) = (authority.join(AUTHORITY), authority.join(AUTHORITY_KEY));
    let certificate = read(&certificate_path)?;
    let key = KeyPair::from_pem(&read_private(&key_path)?).map_err(|error| invalid(&key_path, error))?;
    let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| invalid(&certificate_path, error))?;
    Ok((certificate, issuer))
}

fn sign_by(
    issuer: &Issuer<'_, KeyPair>,
    authority: &str,
    common_name: &str,
    dns_name: &str,
    usage: Usage,
) -> Result<PemKeys, IdentityError> {
    let key = KeyPair::generate()?;
    let certificate = parameters(common_name, dns_name, usage)?.signed_by(&key, issuer)?.pem();
    Ok(PemKeys { authority: authority.to_owned(), certificate, key: key.serialize_pem() })
}

/// What a certificate says, but for the key.
pub(super) fn parameters(common_name: &str, dns_name: &str, usage: Usage) -> Result<CertificateParams, IdentityError> {
    let mut parameters = CertificateParams::new(vec![dns_name.to_owned()])?;
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = match usage {
        Usage::Host => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    Ok(parameters)
}
