//! A session's fields as Redis has them and as the application sees them; no I/O.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;

use crate::sessions::cookie::RandomSourceError;
use crate::sessions::encryption;
use crate::sessions::encryption::{DecryptedField, FieldCipher};

/// Fields by name.
pub type FieldMap = HashMap<String, SessionField>;

/// Fields to set, as JSON texts, and names of fields to remove.
pub type ChangeSet = (Vec<(String, Bytes)>, Vec<String>);

/// Fields as they are stored, and as they shall be.
pub type ReencryptedFields = (Vec<(String, Bytes)>, Vec<(String, SessionField)>);

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionField {
    /// As stored.
    pub stored: Bytes,
    /// As JSON text; none if it is encrypted with a key that we do not have.
    pub text: Option<Bytes>,
}

/// What is to become of a session's fields, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldChanges {
    /// Fields to set, with their names.
    pub set: Vec<(String, SessionField)>,
    /// Names of the fields to remove.
    pub remove: Vec<String>,
}

impl FieldChanges {
    /// Names of the fields it changes.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.set.iter().map(|(name, _)| name).chain(&self.remove)
    }

    /// Makes it so.
    pub fn apply(&self, fields: &mut FieldMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        fields.extend(self.set.iter().cloned());
    }

    /// The fields to set, as they travel.
    pub fn to_wire(&self) -> Vec<(String, Bytes)> {
        self.set.iter().map(|(name, field)| (name.clone(), field.stored.clone())).collect()
    }
}

/// Reads stored fields of the session with this digest.
pub fn decrypt(cipher: Option<&FieldCipher>, digest: &str, stored: Vec<(String, Bytes)>) -> FieldMap {
    let field = |(name, stored): (String, Bytes)| {
        let text = match cipher {
            Some(cipher) => match cipher.decrypt(digest, &name, &stored) {
                DecryptedField::Readable(text) => Some(text),
                DecryptedField::UnknownKey => {
                    tracing::warn!(field = %name, "a session's field is encrypted with a key that is not configured");
                    None
                }
            },
            None => Some(stored.clone()).filter(|stored| !encryption::is_encrypted(stored)),
        };
        (name, SessionField { stored, text })
    };
    stored.into_iter().map(field).collect()
}

/// A field of the session with this digest, ready to be stored.
pub fn encrypt(
    cipher: Option<&FieldCipher>,
    digest: &str,
    name: &str,
    text: Bytes,
) -> Result<SessionField, RandomSourceError> {
    let stored = match cipher {
        Some(cipher) => cipher.encrypt(digest, name, &text)?,
        None => text.clone(),
    };
    Ok(SessionField { stored, text: Some(text) })
}

/// The fields that must be encrypted anew for another digest: as they are, and as they shall be.
pub fn reencrypt(
    cipher: Option<&FieldCipher>,
    digest: &str,
    fields: &FieldMap,
) -> Result<ReencryptedFields, RandomSourceError> {
    let (mut expect, mut set) = (Vec::new(), Vec::new());
    for (name, field) in fields.iter().filter(|(_, field)| encryption::is_encrypted(&field.stored)) {
        expect.push((name.clone(), field.stored.clone()));
        // What we cannot read belongs to the old id for ever: it goes along and stays unreadable.
        if let Some(text) = &field.text {
            set.push((name.clone(), encrypt(cipher, digest, name, text.clone())?));
        }
    }
    Ok((expect, set))
}

/// What the application can read; a field that is no JSON counts as absent, or it would be an error for ever.
pub fn values(fields: &FieldMap) -> HashMap<String, Value> {
    let value = |(name, field): (&String, &SessionField)| match serde_json::from_slice(field.text.as_ref()?) {
        Ok(value) => Some((name.clone(), value)),
        Err(error) => {
            tracing::warn!(field = %name, %error, "a session's field is not JSON and is ignored: {error}");
            None
        }
    };
    fields.iter().filter_map(value).collect()
}

/// Names of the fields that are neither JSON nor encrypted: they go with the next change.
pub fn unreadable_names(fields: &FieldMap) -> Vec<String> {
    let is_broken = |text: &Bytes| serde_json::from_slice::<serde::de::IgnoredAny>(text).is_err();
    fields
        .iter()
        .filter(|(_, field)| field.text.as_ref().is_some_and(is_broken))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Bytes of names and values.
pub fn size(fields: &FieldMap) -> usize {
    fields.iter().map(|(name, field)| name.len() + field.stored.len()).sum()
}

/// What changed between the values that were given out and those that came back: JSON texts, and names that are gone.
pub fn diff(
    given: &HashMap<String, Value>,
    back: &HashMap<String, Value>,
) -> Result<ChangeSet, serde_json::Error> {
    let changed = back.iter().filter(|(name, value)| given.get(*name) != Some(value));
    let changed = changed.map(|(name, value)| Ok((name.clone(), Bytes::from(serde_json::to_vec(value)?))));
    let removed = given.keys().filter(|name| !back.contains_key(*name)).cloned().collect();
    Ok((changed.collect::<Result<_, serde_json::Error>>()?, removed))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(pairs: &[(&str, Value)]) -> HashMap<String, Value> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn only_what_changed_travels() {
        let before = map(&[("same", json!(1)), ("changed", json!(1)), ("removed", json!(1))]);
        let after = map(&[("same", json!(1)), ("changed", json!(2)), ("new", json!([3]))]);
        let (mut set, remove) = diff(&before, &after).unwrap();
        set.sort();
        assert_eq!(set, [("changed".to_owned(), "2".into()), ("new".to_owned(), Bytes::from("[3]"))]);
        assert_eq!(remove, ["removed"]);
    }

    #[test]
    fn sealed_fields_are_sealed_anew_and_unreadable_ones_stay() {
        let cipher = FieldCipher::new([&b"a secret of at least thirty-two bytes"[..]]);
        let other = FieldCipher::new([&b"another secret of thirty-two bytes or more"[..]]).unwrap();
        let stored = vec![
            ("mine".to_owned(), cipher.as_ref().unwrap().encrypt("old", "mine", b"1").unwrap()),
            ("theirs".to_owned(), other.encrypt("old", "theirs", b"2").unwrap()),
            ("plain".to_owned(), Bytes::from("3")),
            ("broken".to_owned(), Bytes::from("{")),
        ];
        let fields = decrypt(cipher.as_ref(), "old", stored);
        let mut readable: Vec<String> = values(&fields).into_keys().collect();
        readable.sort();
        assert_eq!(readable, ["mine", "plain"]);
        assert_eq!(unreadable_names(&fields), ["broken"]);
        let (expect, set) = reencrypt(cipher.as_ref(), "new", &fields).unwrap();
        assert_eq!((expect.len(), set.len()), (2, 1));
        let moved = set.into_iter().map(|(name, field)| (name, field.stored)).collect();
        assert_eq!(decrypt(cipher.as_ref(), "new", moved)["mine"].text, Some("1".into()));
    }
}
