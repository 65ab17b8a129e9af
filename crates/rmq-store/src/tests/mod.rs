//! Tests of the log as a whole, by topic; `support` builds entries and reads what is on the disk.

mod append;
mod building;
mod crash;
mod damage;
mod extent;
mod faults;
mod inspection;
mod model;
mod open;
mod retention;
mod store_crash;
mod support;
mod transfer;
