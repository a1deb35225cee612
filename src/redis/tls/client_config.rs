//! TLS to Redis: trusted authorities, and a client certificate if the server requires one.
//!
//! The server's name is always verified, and no setting switches that off: an unverified certificate protects against
//! nothing, and a private authority takes one line (`redis.tls_ca`).

use std::path::Path;
use std::sync::{Arc, LazyLock};

use fred::types::config::Config;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::settings::RedisCredentials;
use crate::redis::error::RedisError;
use crate::sys;

/// The system's authorities, read once: reading hundreds of them takes longer than connecting.
static SYSTEM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut store = RootCertStore::empty();
    // Certificates that cannot be read or used are skipped, as other programs do: the rest is still usable.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(store)
});

/// A connection's settings with those of its encryption.
///
/// # Errors
/// `InvalidSetting` naming the setting whose file cannot be used, and why.
pub(in crate::redis) fn encrypt(
    config: Config,
    credentials: &RedisCredentials,
) -> Result<Config, RedisError> {
    let tls = Some(client_config(credentials)?.into());
    Ok(Config { tls, ..config })
}

/// Settings for one attempt to connect.
///
/// # Errors
/// `InvalidSetting` naming the setting whose file cannot be used, and why.
fn client_config(access: &RedisCredentials) -> Result<ClientConfig, RedisError> {
    let trusted = match &access.tls_ca {
        Some(file) => Arc::new(authorities(file)?),
        None if SYSTEM_ROOTS.is_empty() => {
            return Err(RedisError::invalid_setting(
                "the system trusts no certificate authority; name yours in redis.tls_ca",
            ));
        }
        None => Arc::clone(&SYSTEM_ROOTS),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| RedisError::invalid_setting(format!("TLS cannot be used: {error}")))?
        .with_root_certificates(trusted);
    match (&access.tls_cert, &access.tls_key) {
        (Some(cert), Some(key)) => {
            let (chain, key) = (certificates("redis.tls_cert", cert)?, private_key(key)?);
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                RedisError::invalid_setting(format!(
                    "redis.tls_cert and redis.tls_key do not go together: {error}"
                ))
            })
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, RedisError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("redis.tls_ca", file)? {
        store.add(certificate).map_err(|error| {
            RedisError::invalid_setting(format!(
                "redis.tls_ca {} holds no certificate authority: {error}",
                file.display()
            ))
        })?;
    }
    Ok(store)
}

fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, RedisError> {
    let text = read_file(setting, file)?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable_file(setting, file, &pem::Error::NoItemsFound)),
        Err(error) => Err(unusable_file(setting, file, &error)),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, RedisError> {
    let text = read_file("redis.tls_key", file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| unusable_file("redis.tls_key", file, &error))
}

fn read_file(setting: &str, file: &Path) -> Result<Vec<u8>, RedisError> {
    let read = sys::path::read_secret(file);
    read.map_err(|error| {
        RedisError::invalid_setting(format!("{setting} {} cannot be read: {error}", file.display()))
    })
}

fn unusable_file(setting: &str, file: &Path, error: &pem::Error) -> RedisError {
    let reason = match error {
        pem::Error::NoItemsFound => "holds nothing of that kind in PEM form".to_owned(),
        other => format!("is no PEM file: {other}"),
    };
    RedisError::invalid_setting(format!("{setting} {} {reason}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_file_is_named_with_its_setting() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
        std::fs::write(&empty, "nothing").unwrap();
        let ca = |file: &Path| RedisCredentials { tls_ca: Some(file.into()), ..RedisCredentials::default() };
        for (file, reason) in [(&missing, "cannot be read"), (&empty, "holds nothing of that kind")] {
            let message = client_config(&ca(file)).unwrap_err().to_string();
            let all = ["redis.tls_ca", reason, &file.display().to_string()];
            assert!(all.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
