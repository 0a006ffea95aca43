//! Metrics of the disks and network cards of VMs, each by its number in the VM's spec.

use api::figures::{CardFigures, DiskFigures, Figures};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Unit;

use super::{Families, Labels};

/// A counter of each disk, or of each card: its name, help and unit, and where its value is.
type Column<T> = (&'static str, &'static str, Option<Unit>, fn(&T) -> u64);

const DISK: [Column<DiskFigures>; 7] = [
    ("disk_reads", "Read requests done by a disk", None, |disk| disk.reads),
    ("disk_read", "What the guest has read from a disk", Some(Unit::Bytes), |disk| disk.read_bytes),
    ("disk_writes", "Write requests done by a disk", None, |disk| disk.writes),
    ("disk_written", "What the guest has written to a disk", Some(Unit::Bytes), |disk| disk.written_bytes),
    ("disk_flushes", "Flush requests done by a disk", None, |disk| disk.flushes),
    ("disk_discards", "Requests done by a disk that discard, or write zeros", None, |disk| disk.discards),
    ("disk_errors", "Requests to a disk that failed", None, |disk| disk.errors),
];

const CARD: [Column<CardFigures>; 6] = [
    ("card_received_frames", "Frames that the guest received by a network card", None, |card| card.received_frames),
    ("card_received", "What the guest received by a network card", Some(Unit::Bytes), |card| card.received_bytes),
    ("card_received_dropped", "Frames for the guest that were dropped", None, |card| card.received_dropped),
    ("card_sent_frames", "Frames that the guest sent by a network card", None, |card| card.sent_frames),
    ("card_sent", "What the guest sent by a network card", Some(Unit::Bytes), |card| card.sent_bytes),
    ("card_sent_dropped", "Frames of the guest's that were dropped", None, |card| card.sent_dropped),
];

impl Families<'_> {
    /// What devices did in the processes of primaries.
    pub(super) fn of_devices(&mut self) {
        self.of_each("disk", DISK, |figures| &figures.disks);
        self.of_each("card", CARD, |figures| &figures.cards);
    }

    fn of_each<T>(
        &mut self,
        label: &'static str,
        columns: impl IntoIterator<Item = Column<T>>,
        devices: fn(&Figures) -> &[T],
    ) {
        for (name, help, unit, value) in columns {
            let family = Family::<Labels, Counter>::default();
            for status in self.replicas {
                for (number, device) in devices(&status.figures).iter().enumerate() {
                    let mut labels = self.labels(status, None);
                    labels.push((label, number.to_string()));
                    family.get_or_create(&labels).inc_by(value(device));
                }
            }
            match unit {
                Some(unit) => self.registry.register_with_unit(name, help, unit, family),
                None => self.registry.register(name, help, family),
            }
        }
    }
}
