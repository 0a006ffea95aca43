//! A primary that was succeeded, and whose disks keep it from ending.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use super::{Acting, Process};
use crate::replica::end::ReplicaEnd;

/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long saying why may take: the folder may be where the disks are.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

impl Process {
    /// Ends the process when another replica goes on, and a request to a disk of this one does not end. As long as the process lives.
    pub(super) fn watch_for_hang(self: &Arc<Self>) {
        loop {
            thread::sleep(LOOK_INTERVAL);
            let primary = match &self.shared().acting {
                Acting::Primary(primary, _) => primary.clone(),
                Acting::Starting | Acting::Restarting | Acting::Secondary(_) => continue,
            };
            let Some(reason) = primary.hangs_after_its_end() else { continue };
            let (said, is_said) = sync_channel(1);
            let folder = self.config.folder.clone();
            thread::spawn(move || {
                let left = ReplicaEnd::LostArbitration { message: reason.to_string() }.leave(&folder);
                // Nobody may wait any more.
                let _ = said.send(left);
            });
            // Whether it could be said or not. Nothing is logged, for the same reason.
            let _ = is_said.recv_timeout(LAST_WORDS_MAX);
            std::process::exit(1);
        }
    }
}
