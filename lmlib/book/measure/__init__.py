"""Measurements that the calculators are compared with, and the transformer that they are taken on."""
