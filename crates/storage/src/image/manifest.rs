//! What an image was made of.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ImageError, ImageSpec, Pulled};

/// Format written; a manifest of another one is refused.
const FORMAT: u32 = 1;

/// Content of `manifest.json`. It holds no time and no path of the build, so the same inputs give the same manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    format: u32,
    /// What was asked for.
    pub spec: ImageSpec,
    /// Digest over everything that determines the image; an image with the same one need not be built again.
    pub inputs_sha256: String,
    /// The kernel.
    pub kernel: KernelInfo,
    /// Kernel command line that the image is made for.
    pub cmdline: String,
    /// Packages on the root disk and in the initial RAM disk, by name.
    pub packages: Vec<PackageInfo>,
    /// The files of the image except the manifest.
    pub files: Vec<BuiltFile>,
    /// What the root disk was, if it was not built here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled: Option<Pulled>,
}

/// Which kernel an image has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Package that the kernel came from.
    pub package: String,
    /// Version of that package.
    pub version: String,
    /// What `uname -r` prints.
    pub release: String,
}

/// One Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageInfo {
    /// Package name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Debian architecture (`amd64` or `all`).
    pub architecture: String,
    /// Size of the `.deb` in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the `.deb`, in hexadecimal.
    pub sha256: String,
}

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltFile {
    /// Name in the image's directory.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the content as it was built, in hexadecimal. A root disk that has been written to differs.
    pub sha256: String,
}

impl Manifest {
    pub(crate) const FILE_NAME: &str = "manifest.json";

    pub(crate) fn new(
        spec: ImageSpec,
        inputs_sha256: String,
        kernel: KernelInfo,
        cmdline: String,
        packages: Vec<PackageInfo>,
        files: Vec<BuiltFile>,
    ) -> Self {
        Self { format: FORMAT, spec, inputs_sha256, kernel, cmdline, packages, files, pulled: None }
    }

    /// Reads a manifest.
    pub(crate) fn load(path: &Path) -> Result<Self, ImageError> {
        let text = fs::read(path).map_err(ImageError::at(path))?;
        let bad = |reason: String| ImageError::BadManifest { path: path.to_path_buf(), reason };
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(bad(format!("format {} instead of {FORMAT}", manifest.format)));
        }
        Ok(manifest)
    }

    /// Writes the manifest into an image's directory.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), ImageError> {
        let path = dir.join(Self::FILE_NAME);
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest has no map keys that JSON cannot hold");
        text.push(b'\n');
        fs::write(&path, text).map_err(ImageError::at(&path))
    }
}
