//! A certificate that listeners show to clients, with its key.
//!
//! Promises: what is here was read whole, fits together, and can be given in a handshake. Refuses to know: what it is called, and which
//! client gets it.

use crate::secret::{ExposeSecret as _, SecretString};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A certificate that is renewed by a machine has been, so long before its end: nearer to it operators are warned.
pub const CERTIFICATE_ENDS_SOON_DAYS: i64 = 14;

/// A certificate, and those that lead to its authority.
#[derive(Debug)]
pub struct CertificateChain {
    path: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    ends_at_s: i64,
}

/// A certificate that fits its key.
#[derive(Debug)]
pub struct ServerCertificate {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    ends_at_s: i64,
}

/// Why there is no certificate, in words for operators.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file cannot be read, or is no PEM.
    #[error("{path}: {cause}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The key is none that can sign, or no PEM.
    #[error("it is no private key in PEM: {0}")]
    NoKey(String),
    /// It is the key of something else.
    #[error("it is not the key of the certificate in {path}", path = .0.display())]
    OtherKey(PathBuf),
}

impl CertificateChain {
    /// Reads a PEM file, the certificate first in it.
    ///
    /// # Errors
    ///
    /// It cannot be read, or has no certificate.
    pub fn read(path: &Path) -> Result<Self, CertificateError> {
        let failed = |cause: String| CertificateError::File { path: path.to_owned(), cause };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| failed(error.to_string()))?;
        let first = certificates.first().ok_or_else(|| failed("there is no certificate in it".to_owned()))?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|error| failed(error.to_string()))?;
        let (names, ends_at_s) = (dns_names(&parsed), parsed.validity().not_after.timestamp());
        Ok(CertificateChain { path: path.to_owned(), certificates, names, ends_at_s })
    }

    /// With its key, in PEM.
    ///
    /// # Errors
    ///
    /// It is no key, or not the one of this certificate.
    pub fn with_key(self, pem: &SecretString) -> Result<ServerCertificate, CertificateError> {
        let key = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes())
            .map_err(|error| CertificateError::NoKey(error.to_string()))?;
        let certified = CertifiedKey::from_der(self.certificates, key, &ring::default_provider());
        let certified = certified.map_err(|error| {
            if error == Error::InconsistentKeys(InconsistentKeys::KeyMismatch) {
                CertificateError::OtherKey(self.path)
            } else {
                CertificateError::NoKey(error.to_string())
            }
        })?;
        Ok(ServerCertificate { certified: Arc::new(certified), names: self.names, ends_at_s: self.ends_at_s })
    }
}

impl ServerCertificate {
    /// What a handshake takes.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The DNS names that it is for, in small letters.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// When it ends, in seconds since 1970.
    pub fn ends_at_s(&self) -> i64 {
        self.ends_at_s
    }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let general = alternative.map(|found| found.value.general_names.clone()).unwrap_or_default();
    let dns = general.into_iter().filter_map(|name| {
        if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }
    });
    dns.collect()
}
