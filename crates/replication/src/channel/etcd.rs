//! Certificates for etcd: of an authority of its own, so that no certificate of the cluster's is good there, and none of etcd's here.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::authority::issuer;
use super::error::IdentityError;
use super::keys::PemKeys;

/// Has etcd's authority make the keys of a member at an address, for clients and other members that connect to it, and for its own connections.
///
/// # Errors
/// If the authority's files cannot be used, or the system gives no random numbers.
pub fn issue_member(authority: &Path, address: IpAddr) -> Result<PemKeys, IdentityError> {
    let (authority, issuer) = issuer(authority)?;
    let key = KeyPair::generate()?;
    let mut parameters = nameless()?;
    parameters.subject_alt_names = vec![SanType::IpAddress(address)];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = parameters.signed_by(&key, &issuer)?.pem();
    Ok(PemKeys { authority, certificate, key: key.serialize_pem() })
}

/// Has etcd's authority sign a request for the certificate of a client. Nothing is taken from the request but its key. Answers the authority's certificate
/// and the client's, as PEM.
///
/// # Errors
/// If the request is none, or the authority's files cannot be used.
pub fn sign_etcd_client(authority: &Path, request: &str) -> Result<(String, String), IdentityError> {
    let asked = CertificateSigningRequestParams::from_pem(request);
    let asked = asked.map_err(|error| IdentityError::Request(error.to_string()))?;
    let (authority, issuer) = issuer(authority)?;
    let mut parameters = nameless()?;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok((authority, parameters.signed_by(&asked.public_key, &issuer)?.pem()))
}

/// What a certificate says that names nobody: etcd's JSON gateway refuses clients whose certificates have a common name, once it knows users
/// (etcd v3.4, `embed/serve.go`), since it would not pass that name on.
fn nameless() -> Result<CertificateParams, IdentityError> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, "twinvm");
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok(parameters)
}
