//! What etcd's JSON gateway is asked and answers (etcd v3.4, `rpc.proto` and `kv.proto`): keys and values in base64, numbers of 64 bits as text, and
//! what is zero left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Those of a key.
    pub fn key(key: &str) -> Self {
        Self(key.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// A number of 64 bits that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // A lease that is not there has -1 s left.
        if text.starts_with('-') { Ok(Self(0)) } else { text.parse().map(Self).map_err(D::Error::custom) }
    }
}

/// What every answer begins with. An answer without one is not etcd's, and says nothing: also not that a key is not there.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Header {
    pub cluster_id: Number,
    pub revision: Number,
}

/// An answer.
pub trait Answered: DeserializeOwned {
    /// Its header; none if it only tells of a problem.
    fn header(&self) -> Option<Header>;
}

/// An answer of which nothing else is of interest.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Done {
    pub header: Header,
}

macro_rules! answered {
    ($($answer:ty),*) => {$(
        impl Answered for $answer {
            fn header(&self) -> Option<Header> {
                Some(self.header)
            }
        }
    )*};
}

answered!(Done, RangeResponse, TxnResponse, LeaseResponse, WatchResponse);

impl<T: Answered> Answered for Streamed<T> {
    fn header(&self) -> Option<Header> {
        self.result.as_ref().and_then(T::header)
    }
}

/// An entry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub mod_revision: Number,
}

/// The error with which etcd refuses a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub message: String,
    pub error: String,
    pub code: i32,
}

#[derive(Clone, Debug, Serialize)]
pub struct RangeRequest {
    pub key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Bytes>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RangeResponse {
    pub header: Header,
    #[serde(default)]
    pub kvs: Vec<KeyValue>,
}

/// That an entry has this revision; 0: that it is not there.
#[derive(Clone, Debug, Serialize)]
pub struct CompareRevision {
    key: Bytes,
    target: &'static str,
    result: &'static str,
    mod_revision: Number,
}

impl CompareRevision {
    /// For a key.
    pub fn new(key: &str, revision: u64) -> Self {
        Self { key: Bytes::key(key), target: "MOD", result: "EQUAL", mod_revision: Number(revision) }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct PutRequest {
    pub key: Bytes,
    pub value: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<Number>,
}

#[derive(Clone, Debug, Serialize)]
pub enum RequestOp {
    #[serde(rename = "request_put")]
    Put(PutRequest),
    #[serde(rename = "request_delete_range")]
    DeleteRange(RangeRequest),
    #[serde(rename = "request_range")]
    Range(RangeRequest),
}

#[derive(Clone, Debug, Serialize)]
pub struct TxnRequest {
    pub compare: Vec<CompareRevision>,
    pub success: Vec<RequestOp>,
    pub failure: Vec<RequestOp>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TxnResponse {
    pub header: Header,
    #[serde(default)]
    pub succeeded: bool,
    #[serde(default)]
    pub responses: Vec<ResponseOp>,
}

/// Only what was read is of interest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResponseOp {
    pub response_range: Option<RangeResponse>,
}

#[derive(Clone, Debug, Serialize)]
pub struct GrantRequest {
    #[serde(rename = "TTL")]
    pub ttl: Number,
}

#[derive(Clone, Debug, Serialize)]
pub struct LeaseRequest {
    #[serde(rename = "ID")]
    pub id: Number,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LeaseResponse {
    pub header: Header,
    #[serde(rename = "ID", default)]
    pub id: Number,
    /// Left out, or less, if it has ended.
    #[serde(rename = "TTL", default)]
    pub ttl: Number,
}

#[derive(Clone, Debug, Serialize)]
pub struct WatchRequest {
    pub create_request: WatchCreate,
}

#[derive(Clone, Debug, Serialize)]
pub struct WatchCreate {
    pub key: Bytes,
    pub range_end: Bytes,
    pub start_revision: Number,
}

/// A message of a stream.
#[derive(Clone, Debug, Deserialize)]
pub struct Streamed<T> {
    pub result: Option<T>,
    pub error: Option<Problem>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct WatchResponse {
    pub header: Header,
    #[serde(default)]
    pub canceled: bool,
    #[serde(default)]
    pub compact_revision: Number,
    #[serde(default)]
    pub cancel_reason: String,
    #[serde(default)]
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    /// `PUT`, which is left out, or `DELETE`.
    #[serde(rename = "type")]
    pub kind: String,
    pub kv: KeyValue,
}
