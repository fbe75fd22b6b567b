//! TLS to Redis: TLS 1.2 or 1.3, the server's name checked, no certificate of our own.

use std::path::Path;
use std::sync::Arc;

use fred::rustls::crypto::ring;
use fred::rustls::pki_types::CertificateDer;
use fred::rustls::pki_types::pem::PemObject;
use fred::rustls::{ClientConfig, RootCertStore};
use fred::rustls_native_certs;
use fred::types::config::TlsConnector;

use super::Error;

/// What vouches for a server: the certificates of a PEM file, or the system's when it is empty.
pub fn config(ca_file: &Path) -> Result<TlsConnector, Error> {
    let mut roots = RootCertStore::empty();
    if ca_file.as_os_str().is_empty() {
        // A system's list may hold a few that cannot be read; the others do.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(Error::TlsAuthorities);
        }
    } else {
        let refuse = |reason: String| Error::TlsFile { path: ca_file.to_owned(), reason };
        let pem = std::fs::read(ca_file).map_err(|error| refuse(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
            roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(refuse("no certificate in it: give a PEM file".to_owned()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config.into())
}
