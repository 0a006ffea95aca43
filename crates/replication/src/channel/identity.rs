//! [`Identity`]: who a host is.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use webpki::EndEntityCert;

use super::error::IdentityError;
use super::keys::{AUTHORITY, HOST, HOST_KEY, invalid, read, read_private};

/// A host's certificate and key, and the authority whose word it takes on others.
#[derive(Clone)]
pub struct Identity {
    host: String,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// Loads what [`issue`](super::issue) has written.
    ///
    /// # Errors
    /// If a file is missing or damaged, the key belongs to another certificate, or others can read the key.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let (authority_path, host_path, key_path) = (folder.join(AUTHORITY), folder.join(HOST), folder.join(HOST_KEY));
        let authority = CertificateDer::from_pem_slice(read(&authority_path)?.as_bytes());
        let authority = authority.map_err(|error| invalid(&authority_path, error))?;
        let certificate = CertificateDer::from_pem_slice(read(&host_path)?.as_bytes());
        let certificate = certificate.map_err(|error| invalid(&host_path, error))?;
        let key = PrivateKeyDer::from_pem_slice(read_private(&key_path)?.as_bytes());
        let key = key.map_err(|error| invalid(&key_path, error))?;
        let host = host_name(&certificate).ok_or_else(|| invalid(&host_path, "it names no host"))?;

        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|error| invalid(&authority_path, error))?;
        let roots = Arc::new(roots);
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| invalid(&authority_path, error))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                let builder = builder.with_client_cert_verifier(verifier);
                builder.with_single_cert(vec![certificate.clone()], key.clone_key())
            })
            .map_err(|error| invalid(&key_path, error))?;
        // Each connection proves who is there anew.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key))
            .map_err(|error| invalid(&key_path, error))?;
        client.resumption = Resumption::disabled();
        Ok(Self { host, server: Arc::new(server), client: Arc::new(client) })
    }

    /// The host's name, as its certificate says.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// For listening: TLS 1.3, and only for clients that the authority vouches for.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For connecting: TLS 1.3, and only to a server that the authority vouches for by the name which is asked for.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

/// The host that a certificate names.
pub(super) fn host_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_dns_names().next().map(str::to_owned)
}
