"""Students: small image-text models trained from a cache's targets, without the teacher."""
