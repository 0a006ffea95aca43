//! Errors with their causes in one line, for people.

/// An error with what caused it, as in `cannot read a: b`. Many typed errors end in the words of their cause, as they are shown alone elsewhere: nothing is said
/// twice.
pub fn error_text(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            text if text.contains(&cause) => text.to_owned(),
            text => format!("{text}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context;
    use storage::disk::{DiskImage, DiskOptions};

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let opened = DiskImage::open(Path::new("/no/disk"), DiskOptions::default()).map(drop);
        let error = opened.context("disk 0").unwrap_err();
        assert_eq!(error_text(&error), "disk 0: /no/disk: No such file or directory (os error 2)");
        assert!(format!("{error:#}").matches("No such file").count() == 2, "which is what this is for");
        let read = std::fs::read("/no/file").map(drop).context("cannot read /no/file").context("kernel").unwrap_err();
        assert_eq!(error_text(&read), "kernel: cannot read /no/file: No such file or directory (os error 2)");
        assert_eq!(error_text(&anyhow::anyhow!("alone")), "alone");
    }
}
