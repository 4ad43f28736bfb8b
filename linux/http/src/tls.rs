//! TLS with the certificates in the directory `DOCKER_CERT_PATH`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::Error;
use crate::stream::Stream;

type Handshake = dyn Fn(ServerName<'static>, TcpStream) -> HandshakeFuture + Send + Sync;
type HandshakeFuture = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// The certificate authority that verifies the server, and the client's certificate.
#[derive(Clone)]
pub struct Tls {
    directory: PathBuf,
    /// Indirect, so that the linker leaves TLS out of a program that never reads certificates.
    handshake: Arc<Handshake>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is not PEM.
    #[error("cannot read {path:?}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Cause of the error.
        source: rustls_pki_types::pem::Error,
    },
    /// A certificate or key is not acceptable.
    #[error("certificates in {directory:?} cannot be used: {source}")]
    Certificates {
        /// Directory of the certificates.
        directory: PathBuf,
        /// Cause of the error.
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` of a directory, as Docker's client does.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_directory(directory: &Path) -> Result<Tls, TlsError> {
        let path = |name: &str| directory.join(name);
        let unusable = |source| TlsError::Certificates { directory: directory.to_owned(), source };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&path("ca.pem"))? {
            roots.add(certificate).map_err(unusable)?;
        }
        let key = private_key(&path("key.pem"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&path("cert.pem"))?, key)
            .map_err(unusable)?;
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = move |name, stream| -> HandshakeFuture {
            let connect = connector.connect(name, stream);
            Box::pin(async move { Ok(Box::new(connect.await?) as Box<dyn Stream>) })
        };
        Ok(Tls { directory: directory.to_owned(), handshake: Arc::new(handshake) })
    }

    pub(crate) async fn connect(&self, address: &str, stream: TcpStream) -> Result<Box<dyn Stream>, Error> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| Error::Tls(io::Error::other(error)))?;
        (self.handshake)(name, stream).await.map_err(Error::Tls)
    }
}

/// The certificates in a PEM file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)
}

/// The key in a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Pem { path: path.to_owned(), source })
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Tls) -> bool {
        self.directory == other.directory
    }
}

impl Eq for Tls {}
