//! Certificates for keys that are made elsewhere: what a new host asks the authority of a cluster for, and how it knows whom it asks.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::authority::{Usage, check_host, issuer, parameters};
use super::error::IdentityError;
use super::keys::{AUTHORITY, HOST_KEY, PemKeys, invalid, read, read_private};

/// The SHA-256 digest of a certificate, by which an authority is known before anything else of it is. As text it is 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// That of an authority, by the folder in which its `ca.pem` is.
    ///
    /// # Errors
    /// If the file cannot be read or holds no certificate.
    pub fn of_authority(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(AUTHORITY);
        let certificate = CertificateDer::from_pem_slice(read(&path)?.as_bytes());
        Ok(Self::of(&certificate.map_err(|error| invalid(&path, error))?))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError::Request(format!("`{text}` is not the fingerprint of a certificate"));
        let digits: Vec<u8> = text.bytes().map(|digit| hex(digit).ok_or_else(wrong)).collect::<Result<_, _>>()?;
        let bytes: Vec<u8> =
            digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        if digits.len() != 64 {
            return Err(wrong());
        }
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| wrong())
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// New keys, for which a certificate is asked for. The private key stays with whoever made them.
pub struct KeyRequest {
    key: KeyPair,
    request: String,
}

impl KeyRequest {
    /// Asks for a certificate for keys that are there: those of a host, in its folder of keys.
    ///
    /// # Errors
    /// If the private key cannot be read, or is none.
    pub fn of_host(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(HOST_KEY);
        let key = KeyPair::from_pem(&read_private(&path)?).map_err(|error| invalid(&path, error))?;
        let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
        Ok(Self { key, request })
    }

    /// Makes keys (ECDSA P-256) for a host of that name.
    ///
    /// # Errors
    /// If `host` is no name in the sense of DNS, or the system gives no random numbers.
    pub fn new(host: &str) -> Result<Self, IdentityError> {
        check_host(host)?;
        let key = KeyPair::generate()?;
        let request = CertificateParams::new(vec![host.to_owned()])?.serialize_request(&key)?.pem()?;
        Ok(Self { key, request })
    }

    /// What the authority is asked with (PKCS #10), as PEM: the public key, and the proof that whoever asks has the private one.
    pub fn request(&self) -> &str {
        &self.request
    }

    /// The keys with the certificate that was given for them, each certificate as PEM.
    pub fn certified(&self, authority: String, certificate: String) -> PemKeys {
        PemKeys { authority, certificate, key: self.key.serialize_pem() }
    }
}

/// A certificate that was asked for, and that of the authority which has signed it, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The authority's certificate.
    pub authority: String,
    /// The certificate.
    pub certificate: String,
    /// The SHA-256 digest of the public key that was asked for, as hexadecimal digits: the same for all requests for one key.
    pub key_digest: String,
}

/// Has an authority sign a request for the certificate of a host. Nothing is taken from the request but its key.
///
/// # Errors
/// If `host` is no name in the sense of DNS, the request is none or whoever wrote it does not have the private key, or the authority's files
/// cannot be used.
pub fn sign_request(authority: &Path, request: &str, host: &str) -> Result<Certified, IdentityError> {
    check_host(host)?;
    let asked = CertificateSigningRequestParams::from_pem(request);
    let asked = asked.map_err(|error| IdentityError::Request(error.to_string()))?;
    let (authority, issuer) = issuer(authority)?;
    let certificate = parameters(host, host, Usage::Host)?.signed_by(&asked.public_key, &issuer)?.pem();
    let digest = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&asked.public_key));
    let key_digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Certified { authority, certificate, key_digest })
}

/// For connecting without a certificate of one's own: TLS 1.3, and only to a server for which the authority with this fingerprint vouches, by the
/// name which is asked for. The server has to show the authority's certificate after its own.
///
/// # Errors
/// If TLS cannot be set up.
pub fn pinned_client(authority: Fingerprint) -> Result<Arc<ClientConfig>, IdentityError> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let pinned = Pinned { authority, provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(|error| IdentityError::Request(error.to_string()))?;
    let mut config = config.dangerous().with_custom_certificate_verifier(Arc::new(pinned)).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Trusts one authority, which it knows by its fingerprint.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|certificate| Fingerprint::of(certificate) == self.authority);
        let authority = authority.ok_or_else(|| {
            rustls::Error::General("it is not of the cluster whose authority the token names".to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
