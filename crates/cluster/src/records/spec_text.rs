//! [`SpecText`]: a VM's spec as it was written, which is read once.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use spec::{SpecError, VmSpec};

/// The TOML of a VM's spec, with what it says. That is found out when it is asked for first, and known to all copies of this from then on: plans look at the
/// specs of all VMs ten times a second. A text does not change; a VM that is given another one has another `SpecText`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct SpecText(Arc<Text>);

struct Text {
    toml: String,
    read: OnceLock<Result<VmSpec, SpecError>>,
}

impl SpecText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0.toml
    }

    /// What it says.
    ///
    /// # Errors
    /// If it is not a spec that this version understands.
    pub fn read(&self) -> Result<&VmSpec, SpecError> {
        self.0.read.get_or_init(|| VmSpec::parse(&self.0.toml)).as_ref().map_err(SpecError::clone)
    }
}

impl From<String> for SpecText {
    fn from(toml: String) -> Self {
        Self(Arc::new(Text { toml, read: OnceLock::new() }))
    }
}

impl From<SpecText> for String {
    fn from(text: SpecText) -> Self {
        text.0.toml.clone()
    }
}

impl Deref for SpecText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for SpecText {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.as_str() == other.as_str()
    }
}

impl Eq for SpecText {}

impl fmt::Debug for SpecText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_once_for_all_its_copies() {
        let text = SpecText::from("name = \"v\"\nmemory = \"1G\"\nkernel = \"k\"\n".to_owned());
        let copy = text.clone();
        let read: *const VmSpec = text.read().unwrap();
        assert!(std::ptr::eq(read, copy.read().unwrap()));
        let json = serde_json::to_string(&text).unwrap();
        assert_eq!(json, serde_json::to_string(text.as_str()).unwrap());
        let back: SpecText = serde_json::from_str(&json).unwrap();
        assert_eq!(back, text);
        assert!(!std::ptr::eq(read, back.read().unwrap()));
    }

    #[test]
    fn what_is_wrong_with_a_text_is_said_each_time() {
        let text = SpecText::from("memory = 7".to_owned());
        let error = text.read().unwrap_err().to_string();
        assert_eq!(error, VmSpec::parse(text.as_str()).unwrap_err().to_string());
        assert_eq!(text.read().unwrap_err().to_string(), error);
    }
}
