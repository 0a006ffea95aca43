//! [`Identity`]: who a host or an operator is.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::IdentityError;
use super::keys::{AUTHORITY, HOST, HOST_KEY, PemKeys, invalid, read, read_private};
use super::peer::Peer;

/// A certificate with its key, and the authority whose word is taken on others.
#[derive(Clone)]
pub struct Identity {
    peer: Peer,
    server: Arc<ServerConfig>,
    open_server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// Loads a host's keys, which [`issue`](super::issue) has written.
    ///
    /// # Errors
    /// If a file is missing or damaged, the key belongs to another certificate, or others can read the key.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let paths = [AUTHORITY, HOST, HOST_KEY].map(|name| folder.join(name));
        let [authority, host, key] = &paths;
        let keys = PemKeys { authority: read(authority)?, certificate: read(host)?, key: read_private(key)? };
        let identity = Self::parse(&keys, [authority, host, key])?;
        if identity.peer.host().is_none() {
            return Err(invalid(host, "it names no host"));
        }
        Ok(identity)
    }

    /// Loads an operator's keys: a file with the text of what [`issue_operator`](super::issue_operator) has made.
    ///
    /// # Errors
    /// If the file is missing or damaged or others can read it, or if it is not an operator's.
    pub fn load_operator(file: &Path) -> Result<Self, IdentityError> {
        let text = read_private(file)?;
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| invalid(file, error))?;
        let [certificate, authority] = <[_; 2]>::try_from(certificates)
            .map_err(|_| invalid(file, "it does not hold a certificate and then the authority's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| invalid(file, error))?;
        let identity = Self::new(authority, certificate, key, [file; 3])?;
        if identity.peer.host().is_some() {
            return Err(invalid(file, "it is a host's, not an operator's"));
        }
        Ok(identity)
    }

    /// The identity that keys give, as those of a session.
    ///
    /// # Errors
    /// If a part is damaged, or the key belongs to another certificate.
    pub fn from_keys(keys: &PemKeys) -> Result<Self, IdentityError> {
        Self::parse(keys, ["authority", "certificate", "key"].map(Path::new))
    }

    /// Errors say which of these places, of the authority, the certificate and the key, is wrong.
    fn parse(keys: &PemKeys, places: [&Path; 3]) -> Result<Self, IdentityError> {
        let [authority_path, certificate_path, key_path] = places;
        let authority = CertificateDer::from_pem_slice(keys.authority.as_bytes());
        let authority = authority.map_err(|error| invalid(authority_path, error))?;
        let certificate = CertificateDer::from_pem_slice(keys.certificate.as_bytes());
        let certificate = certificate.map_err(|error| invalid(certificate_path, error))?;
        let key = PrivateKeyDer::from_pem_slice(keys.key.as_bytes()).map_err(|error| invalid(key_path, error))?;
        Self::new(authority, certificate, key, places)
    }

    fn new(
        authority: CertificateDer<'static>,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        [authority_path, certificate_path, key_path]: [&Path; 3],
    ) -> Result<Self, IdentityError> {
        let peer = Peer::of(&certificate).ok_or_else(|| invalid(certificate_path, "it does not name one host"))?;

        let mut roots = RootCertStore::empty();
        roots.add(authority.clone()).map_err(|error| invalid(authority_path, error))?;
        let roots = Arc::new(roots);
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let server = |is_open: bool, chain: Vec<CertificateDer<'static>>| {
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
            if is_open {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|error| invalid(authority_path, error))?;
            let mut server = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&TLS13])
                .and_then(|builder| {
                    builder.with_client_cert_verifier(verifier).with_single_cert(chain, key.clone_key())
                })
                .map_err(|error| invalid(key_path, error))?;
            // Each connection proves who is there anew.
            server.send_tls13_tickets = 0;
            Ok::<_, IdentityError>(Arc::new(server))
        };
        let closed_server = server(false, vec![certificate.clone()])?;
        let open_server = server(true, vec![certificate.clone(), authority])?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder.with_root_certificates(roots.clone()).with_client_auth_cert(vec![certificate], key)
            })
            .map_err(|error| invalid(key_path, error))?;
        client.resumption = Resumption::disabled();
        Ok(Self { peer, server: closed_server, open_server, client: Arc::new(client) })
    }

    /// Whom the certificate names.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// For listening: TLS 1.3, and only for clients that the authority vouches for.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For listening where also those may ask for something who have no certificate yet: TLS 1.3, and a client that has one is vouched for by the
    /// authority. The authority's certificate is shown, so that a client can know it by its fingerprint.
    pub fn open_server_config(&self) -> Arc<ServerConfig> {
        self.open_server.clone()
    }

    /// For connecting: TLS 1.3, and only to a server that the authority vouches for by the name which is asked for.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}
