#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bms2mqtt_fuzz::name(data));
