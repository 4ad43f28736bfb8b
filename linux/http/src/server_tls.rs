//! TLS of a server.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use crate::stream::Stream;
use crate::tls::{certificates, private_key};
use crate::{Error, TlsError};

/// PEM files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// Certificate authorities, one of which has to have signed a client's certificate; `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
    /// Certificate of the server, and those that lead to its authority.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

/// Certificates of a server, TLS 1.2 or later.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(files: &ServerTlsFiles) -> Result<ServerTls, TlsError> {
        let directory = || files.certificate.parent().unwrap_or(&files.certificate).to_owned();
        let unusable = |source| TlsError::Certificates { directory: directory(), source };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(unusable)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let verifier = verifier.map_err(|e| unusable(rustls::Error::General(e.to_string())))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (certificate, key) = (certificates(&files.certificate)?, private_key(&files.key)?);
        let mut config = builder.with_single_cert(certificate, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(ServerTls(TlsAcceptor::from(Arc::new(config))))
    }

    /// Performs the handshake with a client.
    ///
    /// # Errors
    /// The client does not speak TLS, or has no certificate that is accepted.
    pub async fn accept(&self, stream: TcpStream) -> Result<Box<dyn Stream>, Error> {
        let stream: io::Result<_> = self.0.accept(stream).await;
        Ok(Box::new(stream.map_err(Error::Tls)?))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}
