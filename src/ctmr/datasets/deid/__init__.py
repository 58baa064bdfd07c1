"""De-identification: DICOM by the profile of PS3.15, other files, pseudonyms, and what is left over."""
