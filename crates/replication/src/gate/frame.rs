//! Frames as they wait, are passed on and are saved.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use network::{BackendError, FRAME_LEN_MAX, FrameOffload, HEADER_LEN, InputPosition};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A frame of the guest that waits for its commit. Copies share the bytes.
///
/// One that was deserialized is as sound as one that a guest sent: at most [`FRAME_LEN_MAX`] bytes, with an offload
/// that fits them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SavedOutput", into = "SavedOutput")]
pub struct GatedFrame {
    card: u32,
    offload: FrameOffload,
    bytes: Arc<[u8]>,
}

impl GatedFrame {
    /// A frame that card number `card` sent.
    ///
    /// # Errors
    /// [`BackendError::FrameTooLong`], or [`BackendError::Offload`] if the offload does not fit the frame.
    pub fn new(card: u32, bytes: &[u8], offload: FrameOffload) -> Result<Self, BackendError> {
        check(bytes, offload)?;
        Ok(Self { card, offload, bytes: bytes.into() })
    }

    /// The card that sent it, from 0.
    pub fn card(&self) -> usize {
        self.card as usize
    }

    /// What it leaves open.
    pub fn offload(&self) -> FrameOffload {
        self.offload
    }

    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// How many bytes these frames have.
pub(crate) fn bytes_of(frames: &[GatedFrame]) -> usize {
    frames.iter().map(|frame| frame.bytes.len()).sum()
}

/// A frame for the guest, with its place in the stream of those from its network end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SavedInput")]
pub struct InboundFrame {
    /// Where the stream stands once this frame is taken.
    pub position: InputPosition,
    /// What it leaves open: a `virtio_net_hdr`, as [`FrameOffload::from_header`] reads it.
    pub header: [u8; HEADER_LEN],
    /// The frame.
    #[serde(serialize_with = "serialize_bytes")]
    pub bytes: Vec<u8>,
}

/// What can be said of any frame that passes a gate.
fn check(bytes: &[u8], offload: FrameOffload) -> Result<(), BackendError> {
    if bytes.len() > FRAME_LEN_MAX {
        return Err(BackendError::FrameTooLong { len: bytes.len() });
    }
    Ok(offload.check(bytes.len())?)
}

/// Serialized form of a [`GatedFrame`].
#[derive(Serialize, Deserialize)]
struct SavedOutput {
    card: u32,
    header: [u8; HEADER_LEN],
    #[serde(serialize_with = "serialize_bytes", deserialize_with = "deserialize_bytes")]
    bytes: Arc<[u8]>,
}

impl From<GatedFrame> for SavedOutput {
    fn from(frame: GatedFrame) -> Self {
        Self { card: frame.card, header: frame.offload.to_header(), bytes: frame.bytes }
    }
}

impl TryFrom<SavedOutput> for GatedFrame {
    type Error = BackendError;

    fn try_from(saved: SavedOutput) -> Result<Self, BackendError> {
        let SavedOutput { card, header, bytes } = saved;
        let offload = FrameOffload::from_header(&header)?;
        check(&bytes, offload)?;
        Ok(Self { card, offload, bytes })
    }
}

/// Serialized form of an [`InboundFrame`].
#[derive(Deserialize)]
struct SavedInput {
    position: InputPosition,
    header: [u8; HEADER_LEN],
    #[serde(deserialize_with = "deserialize_bytes")]
    bytes: Vec<u8>,
}

impl TryFrom<SavedInput> for InboundFrame {
    type Error = BackendError;

    fn try_from(saved: SavedInput) -> Result<Self, BackendError> {
        let SavedInput { position, header, bytes } = saved;
        check(&bytes, FrameOffload::from_header(&header)?)?;
        Ok(Self { position, header, bytes })
    }
}

/// As a byte string: a sequence of numbers would be gone through one by one.
fn serialize_bytes<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes.as_ref())
}

/// At most [`FRAME_LEN_MAX`] bytes, which are not copied before they were counted.
fn deserialize_bytes<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: for<'a> From<&'a [u8]>,
{
    struct FrameBytes<T>(PhantomData<T>);

    impl<T: for<'a> From<&'a [u8]>> Visitor<'_> for FrameBytes<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "a frame of at most {FRAME_LEN_MAX} bytes")
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<T, E> {
            if bytes.len() > FRAME_LEN_MAX {
                return Err(E::invalid_length(bytes.len(), &self));
            }
            Ok(bytes.into())
        }
    }

    deserializer.deserialize_bytes(FrameBytes(PhantomData))
}
