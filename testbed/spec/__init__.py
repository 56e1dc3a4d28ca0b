"""What is asked of links: impairments, timelines, profiles, and the topology that they are asked on."""
