//! The cluster's authority, which says who its hosts are.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::DnsName;

use super::error::IdentityError;
use super::keys::{AUTHORITY, AUTHORITY_KEY, HOST, HOST_KEY, NewFiles, invalid, read, read_private};

/// Makes an authority in a folder, which is made if need be: `ca.pem` and `ca.key` (ECDSA P-256).
///
/// # Errors
/// If there is one already, or the files cannot be written. Then nothing is left behind.
pub fn create_authority(folder: &Path) -> Result<(), IdentityError> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, "twinvm cluster");
    // Hosts, and no further authorities.
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = parameters.self_signed(&key)?;
    let mut files = NewFiles::begin(folder)?;
    files.write(AUTHORITY_KEY, &key.serialize_pem(), 0o600)?;
    files.write(AUTHORITY, &certificate.pem(), 0o644)?;
    files.keep();
    Ok(())
}

/// Has an authority make the keys of a host, in a folder that is made if need be: `ca.pem`, `host.pem` and `host.key`.
///
/// # Errors
/// If `host` is no name in the sense of DNS (RFC 1123), the authority's files cannot be used, or there are keys already. Then
/// nothing is left behind.
pub fn issue(authority: &Path, host: &str, folder: &Path) -> Result<(), IdentityError> {
    if DnsName::try_from(host).is_err() {
        return Err(IdentityError::Name(host.to_owned()));
    }
    let (certificate_path, key_path) = (authority.join(AUTHORITY), authority.join(AUTHORITY_KEY));
    let authority_certificate = read(&certificate_path)?;
    let authority_key = KeyPair::from_pem(&read_private(&key_path)?).map_err(|error| invalid(&key_path, error))?;
    let issuer = Issuer::from_ca_cert_pem(&authority_certificate, authority_key);
    let issuer = issuer.map_err(|error| invalid(&certificate_path, error))?;
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(vec![host.to_owned()])?;
    parameters.distinguished_name.push(DnType::CommonName, host);
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = parameters.signed_by(&key, &issuer)?;
    let mut files = NewFiles::begin(folder)?;
    files.write(HOST_KEY, &key.serialize_pem(), 0o600)?;
    files.write(HOST, &certificate.pem(), 0o644)?;
    files.write(AUTHORITY, &authority_certificate, 0o644)?;
    files.keep();
    Ok(())
}
