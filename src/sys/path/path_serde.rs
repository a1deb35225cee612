//! A path in data that travels as JSON: text where it is UTF-8, else its bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Both forms.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathForm {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

/// Writes the path.
///
/// # Errors
/// When the format refuses it.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => text.serialize(serializer),
        None => PathForm::Bytes { bytes: path.as_os_str().as_encoded_bytes().to_vec() }.serialize(serializer),
    }
}

/// Reads it.
///
/// # Errors
/// When it has neither form.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Ok(match PathForm::deserialize(deserializer)? {
        PathForm::Text(text) => text.into(),
        PathForm::Bytes { bytes } => OsString::from_vec(bytes).into(),
    })
}

/// The same of a path that may be missing.
pub mod optional {
    use super::{Deserialize, Deserializer, OsString, OsStringExt, Path, PathBuf, PathForm, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// When the format refuses it.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => super::serialize(Path::new(path), serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it has no known form.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<PathForm>::deserialize(deserializer)?.map(|form| match form {
            PathForm::Text(text) => text.into(),
            PathForm::Bytes { bytes } => OsString::from_vec(bytes).into(),
        }))
    }
}
